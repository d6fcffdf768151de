/* Tries to rewrite its own engine through the process file system. Ends with 66
 * when any of the files could be opened for writing, else with 0. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int attempt(const char *path) {
    int file = open(path, O_RDWR);
    if (file < 0) {
        printf("refused %s: %s\n", path, strerror(errno));
        return 0;
    }
    printf("OPENED %s\n", path);
    close(file);
    return 1;
}

int main(int argc, char **argv) {
    int opened = attempt("/proc/self/mem") + attempt("/proc/1/mem") + attempt("/proc/thread-self/mem");
    for (int i = 1; i < argc; i++)
        opened += attempt(argv[i]);
    return opened ? 66 : 0;
}

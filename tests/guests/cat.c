/* Copies files (or stdin) to stdout: what an exec runs in the tests. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

static int copy(FILE *file) {
    char buffer[4096];
    size_t count;
    while ((count = fread(buffer, 1, sizeof buffer, file)) > 0)
        fwrite(buffer, 1, count, stdout);
    return ferror(file) ? 1 : 0;
}

int main(int argc, char **argv) {
    int code = 0;
    if (argc == 1)
        return copy(stdin);
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "r");
        if (!file) {
            fprintf(stderr, "cat: %s: %s\n", argv[i], strerror(errno));
            code = 1;
            continue;
        }
        code |= copy(file);
        fclose(file);
    }
    return code;
}

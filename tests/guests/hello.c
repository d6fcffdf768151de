/* The everyday command: shows what it was given, touches a volume, ends with the
 * code it is told. READ and WRITE name files, EXIT_CODE the code. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static int show_file(const char *path) {
    char buffer[4096];
    FILE *file = fopen(path, "r");
    if (!file) {
        fprintf(stderr, "read %s: %s\n", path, strerror(errno));
        return 3;
    }
    size_t count;
    while ((count = fread(buffer, 1, sizeof buffer, file)) > 0)
        fwrite(buffer, 1, count, stdout);
    fclose(file);
    return 0;
}

static int write_file(const char *path) {
    FILE *file = fopen(path, "w");
    if (!file || fputs("written by wasm\n", file) < 0 || fclose(file) != 0) {
        fprintf(stderr, "write %s: %s\n", path, strerror(errno));
        return 4;
    }
    return 0;
}

int main(int argc, char **argv) {
    printf("hello from wasm\n");
    for (int i = 0; i < argc; i++)
        printf("arg[%d]=%s\n", i, argv[i]);
    for (char **variable = environ; *variable; variable++)
        printf("env %s\n", *variable);
    char cwd[256];
    if (getcwd(cwd, sizeof cwd))
        printf("cwd=%s\n", cwd);
    int code = 0;
    const char *path = getenv("READ");
    if (path)
        code = show_file(path);
    path = getenv("WRITE");
    if (path && code == 0)
        code = write_file(path);
    const char *exit_code = getenv("EXIT_CODE");
    if (exit_code && code == 0)
        code = atoi(exit_code);
    fprintf(stderr, "to stderr\n");
    fflush(stdout);
    return code;
}

/* A talker: `print bytes N` (no newline at all) or `print lines N` (numbered). With
 * STAY set it waits for ever afterwards, instead of ending. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char block[65536];

static int all(const char *bytes, size_t count) {
    while (count > 0) {
        ssize_t written = write(1, bytes, count);
        if (written <= 0)
            return 5;
        bytes += written;
        count -= (size_t)written;
    }
    return 0;
}

static int talk(int argc, char **argv) {
    if (argc != 3)
        return 2;
    long long count = atoll(argv[2]);
    if (strcmp(argv[1], "lines") == 0) {
        for (long long line = 0; line < count; line++)
            printf("line %lld\n", line);
        return fflush(stdout) == 0 ? 0 : 5;
    }
    memset(block, 'x', sizeof block);
    while (count > 0) {
        size_t part = count < (long long)sizeof block ? (size_t)count : sizeof block;
        int code = all(block, part);
        if (code)
            return code;
        count -= (long long)part;
    }
    return 0;
}

int main(int argc, char **argv) {
    int code = talk(argc, argv);
    while (code == 0 && getenv("STAY"))
        sleep(3600);
    return code;
}

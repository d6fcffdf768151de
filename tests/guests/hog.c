/* Takes memory and touches it, mebibyte by mebibyte, until MIB are taken. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where every block can be seen, so that the compiler keeps the writes. */
static char *volatile last;

int main(int argc, char **argv) {
    long wanted = argc > 1 ? atol(argv[1]) : 1 << 20;
    for (long taken = 0; taken < wanted; taken++) {
        char *block = malloc(1 << 20);
        if (!block) {
            printf("malloc failed at %ld MiB\n", taken);
            return 9;
        }
        memset(block, 1 + (int)(taken & 63), 1 << 20);
        last = block;
        if (taken == 0) {
            printf("taking\n");
            fflush(stdout);
        }
    }
    printf("took %ld MiB\n", wanted);
    return 0;
}

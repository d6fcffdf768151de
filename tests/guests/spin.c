/* Computes for ever without a single host call after its first line. */
#include <stdio.h>

int main(void) {
    printf("spinning\n");
    fflush(stdout);
    for (volatile unsigned turns = 0;; turns++)
        ;
}

/* A service that waits: says that it runs, then sleeps for ever. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
    printf("ready\n");
    fflush(stdout);
    for (;;)
        sleep(3600);
}

/* Ends in a trap, three named functions deep: `trap unreachable` or `trap divide`. */
#include <stdio.h>
#include <string.h>

static volatile int zero;

__attribute__((noinline)) int divide_by_zero(int value) { return value / zero; }

__attribute__((noinline)) int hit_unreachable(int value) {
    if (value > zero)
        __builtin_trap();
    return value;
}

__attribute__((noinline)) int outer_function(const char *how, int value) {
    return 1 + (strcmp(how, "divide") == 0 ? divide_by_zero(value) : hit_unreachable(value));
}

int main(int argc, char **argv) {
    printf("about to trap\n");
    fflush(stdout);
    printf("%d\n", outer_function(argc > 1 ? argv[1] : "unreachable", argc + 6));
    return 0;
}

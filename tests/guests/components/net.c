/* wasi:cli/command: each argument is something to do with the network. */
#include "wasi.h"

EXPORT("wasi:cli/run@0.2.0#run") int32_t run(void) {
    handle to = get_stdout();
    arg_list(&out);
    struct text *args = (struct text *)(uintptr_t)out.words[0], rest;
    uint32_t count = out.words[1];
    for (uint32_t n = 1; n < count; n++) {
        if ((rest = after(args[n], "fetch/")).at) fetch(rest, to);
        else if ((rest = after(args[n], "lookup/")).at) lookup(rest, to);
        else if ((rest = after(args[n], "udp/")).at) udp(number(rest), to);
        else return 1;
    }
    return 0;
}

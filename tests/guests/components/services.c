/* wasi:cli/command: each argument is a call of a service. */
#include "services.h"

EXPORT("wasi:cli/run@0.2.0#run") int32_t run(void) {
    handle to = get_stdout();
    arg_list(&out);
    struct text *args = (struct text *)(uintptr_t)out.words[0];
    uint32_t count = out.words[1];
    for (uint32_t n = 1; n < count; n++) perform(args[n], to);
    return 0;
}

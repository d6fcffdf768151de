/* wasi:cli/command: greets its arguments in the words of another component. */
#include "wasi.h"

IMPORT("demo:words/words@1.0.0", "greet") void greet(const char *, uint32_t, struct text *);

EXPORT("wasi:cli/run@0.2.0#run") int32_t run(void) {
    handle to = get_stdout();
    arg_list(&out);
    struct text *args = (struct text *)(uintptr_t)out.words[0], words;
    uint32_t count = out.words[1];
    for (uint32_t n = 1; n < count; n++) {
        greet(args[n].at, args[n].length, &words);
        if (!say(to, words)) return 1;
    }
    return 0;
}

/* wasi:cli/command: each argument is something to do with a file, or asks which streams are
 * a terminal. Says `ok`, or the number of the error. */
#include "wasi.h"

#define FILES "wasi:filesystem/types@0.2.0"
#include "files.h"

IMPORT("wasi:cli/terminal-stdin@0.2.0", "get-terminal-stdin") void terminal_in(void *);
IMPORT("wasi:cli/terminal-stdout@0.2.0", "get-terminal-stdout") void terminal_out(void *);
IMPORT("wasi:cli/terminal-stderr@0.2.0", "get-terminal-stderr") void terminal_err(void *);

EXPORT("wasi:cli/run@0.2.0#run") int32_t run(void) {
    handle to = get_stdout();
    directories(&out);
    handle root = *(handle *)(uintptr_t)out.words[0];
    arg_list(&out);
    struct text *args = (struct text *)(uintptr_t)out.words[0];
    uint32_t count = out.words[1];
    for (uint32_t n = 1; n < count; n++) {
        if (after(args[n], "terminals").at) {
            terminal_in(&out);
            say(to, string(out.tag ? "in " : "- "));
            terminal_out(&out);
            say(to, string(out.tag ? "out " : "- "));
            terminal_err(&out);
            say(to, string(out.tag ? "err\n" : "-\n"));
            continue;
        }
        /* The numbers of errors are one byte, beside the tag. */
        int error = file_call(root, args[n], 1);
        if (!error) return 1;
        if (out.tag) { say(to, string("error ")); say_number(to, out.bytes[error]); say(to, string("\n")); }
        else say(to, string("ok\n"));
    }
    return 0;
}

/* wasi:cli/command: each argument is something to do with a file, or asks which streams are
 * a terminal. Says `ok`, or the number of the error. */
#include "wasi.h"

#define FILES "wasi:filesystem/types@0.2.0"
IMPORT(FILES, "[method]descriptor.create-directory-at") void mkdir_at(handle, const char *, uint32_t, void *);
IMPORT(FILES, "[method]descriptor.remove-directory-at") void rmdir_at(handle, const char *, uint32_t, void *);
IMPORT(FILES, "[method]descriptor.unlink-file-at") void unlink_at(handle, const char *, uint32_t, void *);
IMPORT(FILES, "[method]descriptor.rename-at") void rename_at(handle, const char *, uint32_t, handle, const char *, uint32_t, void *);
IMPORT("wasi:cli/terminal-stdin@0.2.0", "get-terminal-stdin") void terminal_in(void *);
IMPORT("wasi:cli/terminal-stdout@0.2.0", "get-terminal-stdout") void terminal_out(void *);
IMPORT("wasi:cli/terminal-stderr@0.2.0", "get-terminal-stderr") void terminal_err(void *);

EXPORT("wasi:cli/run@0.2.0#run") int32_t run(void) {
    handle to = get_stdout();
    directories(&out);
    handle root = *(handle *)(uintptr_t)out.words[0];
    arg_list(&out);
    struct text *args = (struct text *)(uintptr_t)out.words[0], rest;
    uint32_t count = out.words[1];
    for (uint32_t n = 1; n < count; n++) {
        /* An error of a call with a result lies behind it, of one without beside the tag. */
        int error = 1;
        if ((rest = after(args[n], "create/")).at) { open_at(root, 1, rest.at, rest.length, 1, 2, &out); error = 4; }
        else if ((rest = after(args[n], "write/")).at) { open_at(root, 1, rest.at, rest.length, 0, 2, &out); error = 4; }
        else if ((rest = after(args[n], "read/")).at) { open_at(root, 1, rest.at, rest.length, 0, 1, &out); error = 4; }
        else if ((rest = after(args[n], "mkdir/")).at) mkdir_at(root, rest.at, rest.length, &out);
        else if ((rest = after(args[n], "rmdir/")).at) rmdir_at(root, rest.at, rest.length, &out);
        else if ((rest = after(args[n], "unlink/")).at) unlink_at(root, rest.at, rest.length, &out);
        else if ((rest = after(args[n], "rename/")).at) rename_at(root, rest.at, rest.length, root, rest.at, rest.length, &out);
        else if (after(args[n], "terminals").at) {
            terminal_in(&out);
            say(to, string(out.tag ? "in " : "- "));
            terminal_out(&out);
            say(to, string(out.tag ? "out " : "- "));
            terminal_err(&out);
            say(to, string(out.tag ? "err\n" : "-\n"));
            continue;
        } else return 1;
        if (out.tag) { say(to, string("error ")); say_number(to, out.bytes[error]); say(to, string("\n")); }
        else say(to, string("ok\n"));
    }
    return 0;
}

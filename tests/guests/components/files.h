/* Calls on files by a word and a path, the same in both versions of WASI: include it behind
 * wasi.h or wasi3.h. The result is at `out`. Says where in it an error is: `plain` for a call
 * that has no other result; 0 if there is no such word. */
IMPORT(FILES, "[method]descriptor.create-directory-at") void mkdir_at(handle, const char *, uint32_t, void *);
IMPORT(FILES, "[method]descriptor.remove-directory-at") void rmdir_at(handle, const char *, uint32_t, void *);
IMPORT(FILES, "[method]descriptor.unlink-file-at") void unlink_at(handle, const char *, uint32_t, void *);
IMPORT(FILES, "[method]descriptor.rename-at") void rename_at(handle, const char *, uint32_t, handle, const char *, uint32_t, void *);

static int file_call(handle root, struct text what, int plain) {
    struct text rest;
    if ((rest = after(what, "create/")).at) { open_at(root, 1, rest.at, rest.length, 1, 2, &out); return 4; }
    if ((rest = after(what, "write/")).at) { open_at(root, 1, rest.at, rest.length, 0, 2, &out); return 4; }
    if ((rest = after(what, "read/")).at) { open_at(root, 1, rest.at, rest.length, 0, 1, &out); return 4; }
    if ((rest = after(what, "mkdir/")).at) mkdir_at(root, rest.at, rest.length, &out);
    else if ((rest = after(what, "rmdir/")).at) rmdir_at(root, rest.at, rest.length, &out);
    else if ((rest = after(what, "unlink/")).at) unlink_at(root, rest.at, rest.length, &out);
    else if ((rest = after(what, "rename/")).at) rename_at(root, rest.at, rest.length, root, rest.at, rest.length, &out);
    else return 0;
    return plain;
}

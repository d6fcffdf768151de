/* One call of wasi:logging, config, keyvalue or blobstore, and its result as a line:
 * `what:first:second:…`, as in `set:bucket:key:value`. */
#include "wasi.h"

IMPORT("wasi:logging/logging@0.1.0-draft", "log") void log_line(int32_t, const char *, uint32_t, const char *, uint32_t);
IMPORT("wasi:config/store@0.2.0-draft", "get") void config_get(const char *, uint32_t, void *);
IMPORT("wasi:config/store@0.2.0-draft", "get-all") void config_all(void *);
IMPORT("wasi:config/runtime@0.2.0-draft", "get") void runtime_get(const char *, uint32_t, void *);

#define KV "wasi:keyvalue/store@0.2.0-draft"
IMPORT(KV, "open") void kv_open(const char *, uint32_t, void *);
IMPORT(KV, "[resource-drop]bucket") void kv_drop(handle);
IMPORT(KV, "[method]bucket.get") void kv_get(handle, const char *, uint32_t, void *);
IMPORT(KV, "[method]bucket.set") void kv_set(handle, const char *, uint32_t, const char *, uint32_t, void *);
IMPORT(KV, "[method]bucket.delete") void kv_delete(handle, const char *, uint32_t, void *);
IMPORT(KV, "[method]bucket.exists") void kv_exists(handle, const char *, uint32_t, void *);
IMPORT(KV, "[method]bucket.list-keys") void kv_keys(handle, int32_t, uint64_t, void *);
IMPORT("wasi:keyvalue/atomics@0.2.0-draft", "increment") void kv_add(handle, const char *, uint32_t, uint64_t, void *);
IMPORT("wasi:keyvalue/batch@0.2.0-draft", "get-many") void kv_get_many(handle, const void *, uint32_t, void *);
IMPORT("wasi:keyvalue/batch@0.2.0-draft", "set-many") void kv_set_many(handle, const void *, uint32_t, void *);
IMPORT("wasi:keyvalue/batch@0.2.0-draft", "delete-many") void kv_delete_many(handle, const void *, uint32_t, void *);

#define KV2 "wasi:keyvalue/store@0.2.0-draft2"
IMPORT(KV2, "open") void kv2_open(const char *, uint32_t, void *);
IMPORT(KV2, "[method]bucket.list-keys") void kv2_keys(handle, int32_t, const char *, uint32_t, void *);
IMPORT("wasi:keyvalue/atomics@0.2.0-draft2", "increment") void kv2_add(handle, const char *, uint32_t, int64_t, void *);
IMPORT("wasi:keyvalue/atomics@0.2.0-draft2", "[static]cas.new") void cas_new(handle, const char *, uint32_t, void *);
IMPORT("wasi:keyvalue/atomics@0.2.0-draft2", "[method]cas.current") void cas_current(handle, void *);
IMPORT("wasi:keyvalue/atomics@0.2.0-draft2", "swap") void cas_swap(handle, const char *, uint32_t, void *);

#define BLOB "wasi:blobstore/blobstore@0.2.0-draft"
#define BLOBS "wasi:blobstore/container@0.2.0-draft"
#define BLOB_TYPES "wasi:blobstore/types@0.2.0-draft"
IMPORT(BLOB, "create-container") void blob_create(const char *, uint32_t, void *);
IMPORT(BLOB, "get-container") void blob_open(const char *, uint32_t, void *);
IMPORT(BLOB, "delete-container") void blob_delete(const char *, uint32_t, void *);
IMPORT(BLOB, "container-exists") void blob_exists(const char *, uint32_t, void *);
IMPORT(BLOB, "copy-object") void blob_copy(const char *, uint32_t, const char *, uint32_t, const char *, uint32_t, const char *, uint32_t, void *);
IMPORT(BLOB, "move-object") void blob_move(const char *, uint32_t, const char *, uint32_t, const char *, uint32_t, const char *, uint32_t, void *);
IMPORT(BLOBS, "[resource-drop]container") void blobs_drop(handle);
IMPORT(BLOBS, "[method]container.get-data") void blobs_get(handle, const char *, uint32_t, uint64_t, uint64_t, void *);
IMPORT(BLOBS, "[method]container.write-data") void blobs_put(handle, const char *, uint32_t, handle, void *);
IMPORT(BLOBS, "[method]container.list-objects") void blobs_list(handle, void *);
IMPORT(BLOBS, "[method]container.delete-object") void blobs_delete(handle, const char *, uint32_t, void *);
IMPORT(BLOBS, "[method]container.has-object") void blobs_has(handle, const char *, uint32_t, void *);
IMPORT(BLOBS, "[method]container.object-info") void blobs_info(handle, const char *, uint32_t, void *);
IMPORT(BLOBS, "[method]container.clear") void blobs_clear(handle, void *);
IMPORT(BLOBS, "[method]stream-object-names.read-stream-object-names") void names_read(handle, uint64_t, void *);
IMPORT(BLOBS, "[method]stream-object-names.skip-stream-object-names") void names_skip(handle, uint64_t, void *);
IMPORT(BLOB_TYPES, "[static]outgoing-value.new-outgoing-value") handle value_new(void);
IMPORT(BLOB_TYPES, "[method]outgoing-value.outgoing-value-write-body") void value_body(handle, void *);
IMPORT(BLOB_TYPES, "[static]outgoing-value.finish") void value_finish(handle, void *);
IMPORT(BLOB_TYPES, "[resource-drop]outgoing-value") void value_drop(handle);
IMPORT(BLOB_TYPES, "[static]incoming-value.incoming-value-consume-sync") void incoming_whole(handle, void *);
IMPORT(BLOB_TYPES, "[static]incoming-value.incoming-value-consume-async") void incoming_stream(handle, void *);
IMPORT(BLOB_TYPES, "[method]incoming-value.size") uint64_t incoming_size(handle);

static handle said;

static void line(struct text text) { say(said, text); say(said, string("\n")); }
/* Prints the text at two words of `out`, which may be printing itself. */
static void line_of(const char *before, int n) {
    struct text text = word(n);
    say(said, string(before));
    line(text);
}
static void line_number(uint64_t n) {
    char digits[20]; int at = 20;
    do { digits[--at] = (char)('0' + n % 10); n /= 10; } while (n);
    line((struct text){ digits + at, (uint32_t)(20 - at) });
}

/* The next field. */
static struct text field(struct text *rest) {
    struct text first = before(*rest, ':');
    uint32_t used = first.length < rest->length ? first.length + 1 : first.length;
    *rest = (struct text){ rest->at + used, rest->length - used };
    return first;
}

/* The error of a result whose value begins at the 4th byte, or at the 8th. Printing it
 * writes to `out`. */
static int error_at(int n) {
    if (!out.tag) return 0;
    line_of("error: ", n);
    return 1;
}
static int refused(void) { return error_at(2); }
static int refused_wide(void) { return error_at(3); }
static int refused_text(void) { return error_at(1); }

static void optional(void) {
    if (refused()) return;
    if (out.bytes[4]) line_of("", 2); else line(string("none"));
}

static handle bucket(struct text name) {
    kv_open(name.at, name.length, &out);
    return refused() ? -1 : (handle)out.words[1];
}

/* How many keys, in how many pages, and the first and last. */
static void keys(handle from, int draft2, handle second) {
    uint32_t count = 0, pages = 0;
    struct text first = { 0, 0 }, last = { 0, 0 };
    uint64_t cursor = 0;
    int more = 0;
    for (;;) {
        if (draft2) kv2_keys(second, more, last.at, last.length, &out);
        else kv_keys(from, more, cursor, &out);
        if (draft2 ? refused() : refused_wide()) return;
        int at = draft2 ? 1 : 2;
        struct text *list = (struct text *)(uintptr_t)out.words[at];
        uint32_t length = out.words[at + 1];
        if (length) { if (!count) first = list[0]; last = list[length - 1]; }
        count += length;
        pages++;
        more = out.bytes[draft2 ? 12 : 16];
        cursor = out.longs[3];
        if (!more) break;
    }
    say_number(said, count);
    say(said, string(" keys, "));
    say_number(said, pages);
    say(said, string(" pages: "));
    say(said, first);
    say(said, string(".."));
    line(last);
}

static void fill(handle in, uint32_t count) {
    char name[8] = "key00000";
    for (uint32_t n = 0; n < count; n++) {
        for (uint32_t at = 7, rest = n; at > 2; at--, rest /= 10) name[at] = (char)('0' + rest % 10);
        kv_set(in, name, 8, "x", 1, &out);
        if (refused()) return;
    }
    line(string("filled"));
}

static void batch(handle in) {
    static const struct { struct text key, value; } pairs[2] = { { { "one", 3 }, { "1", 1 } }, { { "two", 3 }, { "2", 1 } } };
    static const struct text wanted[3] = { { "two", 3 }, { "three", 5 }, { "one", 3 } };
    kv_set_many(in, pairs, 2, &out);
    if (refused()) return;
    kv_get_many(in, wanted, 3, &out);
    if (refused()) return;
    struct { uint32_t some; struct text key, value; } *found = (void *)(uintptr_t)out.words[1];
    for (uint32_t n = 0, count = out.words[2]; n < count; n++) {
        if (!(found[n].some & 255)) { say(said, string("none ")); continue; }
        say(said, found[n].key); say(said, string("=")); say(said, found[n].value); say(said, string(" "));
    }
    kv_delete_many(in, wanted, 3, &out);
    if (refused()) return;
    keys(in, 0, 0);
}

/* Replaces a value, but only if nobody did since: somebody does, when `meddle`. */
static void swap(handle second, struct text name, struct text key, struct text value, int meddle) {
    cas_new(second, key.at, key.length, &out);
    if (refused()) return;
    handle cas = (handle)out.words[1];
    if (meddle) {
        handle first = bucket(name);
        kv_set(first, key.at, key.length, "meddled", 7, &out);
        if (refused()) return;
    }
    cas_swap(cas, value.at, value.length, &out);
    if (!out.tag) { line(string("swapped")); return; }
    if (out.bytes[4] == 0) { line_of("error: ", 3); return; }
    cas_current((handle)out.words[2], &out);
    say(said, string("lost to "));
    optional();
}

static void put(handle in, struct text object, struct text value, uint32_t times, int finish) {
    handle whole = value_new();
    value_body(whole, &out);
    if (out.tag) { line(string("error: no body")); return; }
    handle body = (handle)out.words[1];
    blobs_put(in, object.at, object.length, whole, &out);
    if (refused_text()) return;
    for (uint32_t n = 0; n < times; n++) if (!say(body, value)) break;
    out_drop(body);
    if (!finish) { value_drop(whole); line(string("dropped")); return; }
    value_finish(whole, &out);
    if (!refused_text()) line(string("put"));
}

static void get(handle in, struct text object, uint64_t start, uint64_t end, int stream) {
    blobs_get(in, object.at, object.length, start, end, &out);
    if (refused_text()) return;
    handle value = (handle)out.words[1];
    uint64_t size = incoming_size(value);
    if (!stream) {
        incoming_whole(value, &out);
        if (!refused_text()) line_of("", 1);
        return;
    }
    incoming_stream(value, &out);
    if (refused_text()) return;
    handle from = (handle)out.words[1];
    uint64_t read = 0, sum = 0;
    for (uintptr_t mark = heap;; heap = mark) {
        in_read(from, 65536, &out);
        if (out.tag) break;
        struct text piece = word(1);
        for (uint32_t n = 0; n < piece.length; n++) sum += (uint8_t)piece.at[n];
        read += piece.length;
    }
    in_drop(from);
    if (read != size) line(string("error: not the size"));
    line_number(read);
    line_number(sum);
}

static void objects(handle in) {
    blobs_list(in, &out);
    if (refused_text()) return;
    handle list = (handle)out.words[1];
    names_skip(list, 1, &out);
    if (refused_text()) return;
    for (int end = 0; !end;) {
        names_read(list, 2, &out);
        if (refused_text()) return;
        struct text *names = (struct text *)(uintptr_t)out.words[1];
        uint32_t count = out.words[2];
        end = out.bytes[12];
        for (uint32_t n = 0; n < count; n++) { say(said, names[n]); say(said, string(" ")); }
    }
    line(string("."));
}

static int same(struct text text, const char *word) {
    return text.length == length(word) && after(text, word).at != 0;
}

/* What has to do with containers of blobs; 0 if it is nothing of that. */
static int blobs(struct text what, struct text first, struct text second, struct text rest) {
    if (same(what, "create")) { blob_create(first.at, first.length, &out); if (!refused_text()) line(string("created")); return 1; }
    if (same(what, "drop")) { blob_delete(first.at, first.length, &out); if (!refused_text()) line(string("deleted")); return 1; }
    if (same(what, "there")) { blob_exists(first.at, first.length, &out); if (!refused_text()) line_number(out.bytes[4]); return 1; }
    if (same(what, "copy") || same(what, "move")) {
        struct text to = field(&rest);
        (same(what, "copy") ? blob_copy : blob_move)(first.at, first.length, second.at, second.length, to.at, to.length, rest.at, rest.length, &out);
        if (!refused_text()) line(string("done"));
        return 1;
    }
    if (!after(what, "blob-").at) return 0;
    blob_open(first.at, first.length, &out);
    if (refused_text()) return 1;
    handle in = (handle)out.words[1];
    if (same(what, "blob-put")) put(in, second, rest, 1, 1);
    else if (same(what, "blob-half")) put(in, second, rest, 1, 0);
    else if (same(what, "blob-big")) { static char block[65536]; for (uint32_t n = 0; n < sizeof block; n++) block[n] = (char)n; put(in, second, (struct text){ block, sizeof block }, number(rest), 1); }
    else if (same(what, "blob-get")) { uint32_t start = number(field(&rest)); get(in, second, start, rest.length ? number(rest) : UINT64_MAX, 0); }
    else if (same(what, "blob-sum")) get(in, second, 0, UINT64_MAX, 1);
    else if (same(what, "blob-list")) objects(in);
    else if (same(what, "blob-clear")) { blobs_clear(in, &out); if (!refused_text()) line(string("cleared")); }
    else if (same(what, "blob-delete")) { blobs_delete(in, second.at, second.length, &out); if (!refused_text()) line(string("deleted")); }
    else if (same(what, "blob-has")) { blobs_has(in, second.at, second.length, &out); if (!refused_text()) line_number(out.bytes[4]); }
    else if (same(what, "blob-info")) {
        blobs_info(in, second.at, second.length, &out);
        if (out.tag) line_of("error: ", 2);
        else {
            uint64_t size = out.longs[4], made = out.longs[3];
            line_of("in ", 4);
            line_number(size);
            line_number(made > 1000000000);
        }
    }
    blobs_drop(in);
    return 1;
}

static void perform(struct text rest, handle to) {
    said = to;
    struct text what = field(&rest);
    if (same(what, "all")) {
        config_all(&out);
        if (refused()) return;
        struct text *pairs = (struct text *)(uintptr_t)out.words[1];
        uint32_t count = out.words[2];
        for (uint32_t n = 0; n < count; n++) { say(said, pairs[2 * n]); say(said, string("=")); line(pairs[2 * n + 1]); }
        return;
    }
    if (same(what, "config")) { config_get(rest.at, rest.length, &out); optional(); return; }
    if (same(what, "runtime")) { runtime_get(rest.at, rest.length, &out); optional(); return; }
    struct text first = field(&rest), second = field(&rest);
    if (same(what, "log")) { log_line((int32_t)number(first), second.at, second.length, rest.at, rest.length); return; }
    if (blobs(what, first, second, rest)) return;
    if (same(what, "keys2") || same(what, "add2") || same(what, "swap") || same(what, "lose")) {
        kv2_open(first.at, first.length, &out);
        if (refused()) return;
        handle in = (handle)out.words[1];
        if (same(what, "keys2")) keys(0, 1, in);
        else if (same(what, "add2")) {
            kv2_add(in, second.at, second.length, (int32_t)number(rest) - 10, &out);
            if (!refused_wide()) line_number((uint64_t)((int64_t)out.longs[1] + 1000));
        } else swap(in, first, second, rest, same(what, "lose"));
        return;
    }
    handle in = bucket(first);
    if (in == -1) return;
    if (same(what, "set")) { kv_set(in, second.at, second.length, rest.at, rest.length, &out); if (!refused()) line(string("set")); }
    else if (same(what, "get")) { kv_get(in, second.at, second.length, &out); optional(); }
    else if (same(what, "delete")) { kv_delete(in, second.at, second.length, &out); if (!refused()) line(string("deleted")); }
    else if (same(what, "exists")) { kv_exists(in, second.at, second.length, &out); if (!refused()) line_number(out.bytes[4]); }
    else if (same(what, "keys")) keys(in, 0, 0);
    else if (same(what, "fill")) fill(in, number(second));
    else if (same(what, "batch")) batch(in);
    else if (same(what, "add")) { kv_add(in, second.at, second.length, number(rest), &out); if (!refused_wide()) line_number(out.longs[1]); }
    else if (same(what, "large")) { static char block[(1 << 20) + 1]; kv_set(in, second.at, second.length, block, sizeof block - !number(rest), &out); if (!refused()) line(string("set")); }
    else line(string("error: what?"));
    kv_drop(in);
}

/* WASI 0.3 by hand, as wasi.h does it for 0.2. Functions that may wait are called as if they
 * did not: the host puts the task aside meanwhile. Streams and futures tell that they are not
 * done, and are waited for. The low four bits of what they return at last say how it ended,
 * the others how much was moved. */
#include <stdint.h>

#define IMPORT(module, name) __attribute__((import_module(module), import_name(name))) extern
#define EXPORT(name) __attribute__((export_name(name)))

typedef int32_t handle;
struct text { const char *at; uint32_t length; };
static union { uint8_t tag; uint8_t bytes[64]; uint16_t halves[32]; uint32_t words[16]; uint64_t longs[8]; } out;

IMPORT("wasi:cli/environment@0.3.0", "get-environment") void env_list(void *);
IMPORT("wasi:cli/environment@0.3.0", "get-arguments") void arg_list(void *);
IMPORT("wasi:clocks/monotonic-clock@0.3.0", "wait-for") void wait_for(uint64_t);
IMPORT("wasi:sockets/ip-name-lookup@0.3.0", "resolve-addresses") void resolve(const char *, uint32_t, void *);
IMPORT("wasi:keyvalue/store@0.2.0-draft", "open") void kv_open(const char *, uint32_t, void *);
IMPORT("wasi:keyvalue/atomics@0.2.0-draft", "increment") void kv_add(handle, const char *, uint32_t, uint64_t, void *);

#define FILES "wasi:filesystem/types@0.3.0"
IMPORT("wasi:filesystem/preopens@0.3.0", "get-directories") void directories(void *);
IMPORT(FILES, "[method]descriptor.open-at") void open_at(handle, int32_t, const char *, uint32_t, int32_t, int32_t, void *);

#define STDOUT "wasi:cli/stdout@0.3.0"
IMPORT(STDOUT, "write-via-stream") handle stdout_start(handle);
IMPORT(STDOUT, "[stream-new-0]write-via-stream") uint64_t stdout_new(void);
IMPORT(STDOUT, "[async-lower][stream-write-0]write-via-stream") uint32_t stdout_write(handle, const void *, uint32_t);
IMPORT(STDOUT, "[stream-drop-writable-0]write-via-stream") void stdout_end(handle);
IMPORT(STDOUT, "[async-lower][future-read-1]write-via-stream") uint32_t stdout_done(handle, void *);
IMPORT(STDOUT, "[future-drop-readable-1]write-via-stream") void stdout_drop(handle);

#define TYPES "wasi:http/types@0.3.0"
IMPORT(TYPES, "[constructor]fields") handle fields_new(void);
IMPORT(TYPES, "[method]fields.append") void fields_append(handle, const char *, uint32_t, const char *, uint32_t, void *);
IMPORT(TYPES, "[method]request.get-path-with-query") void request_path(handle, void *);
IMPORT(TYPES, "[method]request.get-authority") void request_authority(handle, void *);
IMPORT(TYPES, "[static]request.consume-body") void request_consume(handle, handle, void *);
IMPORT(TYPES, "[future-new-0][static]request.consume-body") uint64_t request_result(void);
IMPORT(TYPES, "[static]request.new") void request_new(handle, int32_t, handle, handle, int32_t, handle, void *);
IMPORT(TYPES, "[future-new-1][static]request.new") uint64_t request_trailers(void);
IMPORT(TYPES, "[async-lower][future-write-1][static]request.new") uint32_t request_trail(handle, const void *);
IMPORT(TYPES, "[method]request.set-path-with-query") int32_t request_set_path(handle, int32_t, const char *, uint32_t);
IMPORT(TYPES, "[method]request.set-scheme") int32_t request_set_scheme(handle, int32_t, int32_t, const char *, uint32_t);
IMPORT(TYPES, "[method]request.set-authority") int32_t request_set_authority(handle, int32_t, const char *, uint32_t);
IMPORT(TYPES, "[static]response.new") void response_new(handle, int32_t, handle, handle, void *);
IMPORT(TYPES, "[stream-new-0][static]response.new") uint64_t body_new(void);
IMPORT(TYPES, "[async-lower][stream-write-0][static]response.new") uint32_t body_write(handle, const void *, uint32_t);
IMPORT(TYPES, "[stream-drop-writable-0][static]response.new") void body_end(handle);
IMPORT(TYPES, "[future-new-1][static]response.new") uint64_t trailers_new(void);
IMPORT(TYPES, "[async-lower][future-write-1][static]response.new") uint32_t trailers_write(handle, const void *);
IMPORT(TYPES, "[future-drop-writable-1][static]response.new") void trailers_end(handle);
IMPORT(TYPES, "[future-drop-readable-2][static]response.new") void sent_drop(handle);
IMPORT(TYPES, "[method]response.get-status-code") int32_t response_status(handle);
IMPORT(TYPES, "[static]response.consume-body") void response_consume(handle, handle, void *);
IMPORT(TYPES, "[future-new-0][static]response.consume-body") uint64_t response_result(void);
IMPORT(TYPES, "[async-lower][stream-read-1][static]response.consume-body") uint32_t response_read(handle, void *, uint32_t);
IMPORT("wasi:http/client@0.3.0", "send") void client_send(handle, void *);

IMPORT("$root", "[waitable-set-new]") handle set_new(void);
IMPORT("$root", "[waitable-join]") void set_join(handle, handle);
IMPORT("$root", "[waitable-set-wait]") int32_t set_wait(handle, uint32_t *);

/* What a task returns to the host when it is done. */
#define EXIT 0

extern uint8_t __heap_base;
static uintptr_t heap;
EXPORT("cabi_realloc") void *cabi_realloc(void *old, uint32_t old_size, uint32_t align, uint32_t size) {
    if (!heap) heap = (uintptr_t)&__heap_base;
    uintptr_t at = (heap + align - 1) & ~(uintptr_t)(align - 1);
    heap = at + size;
    uintptr_t have = __builtin_wasm_memory_size(0) * 65536;
    if (heap > have && (int32_t)__builtin_wasm_memory_grow(0, (heap - have + 65535) / 65536) < 0) __builtin_trap();
    for (uint32_t n = 0; n < old_size && n < size; n++) ((uint8_t *)at)[n] = ((uint8_t *)old)[n];
    return (void *)at;
}

static uint32_t length(const char *text) { uint32_t n = 0; while (text[n]) n++; return n; }
static struct text string(const char *text) { return (struct text){ text, length(text) }; }
static struct text after(struct text text, const char *prefix) {
    uint32_t n = length(prefix);
    if (text.length < n) return (struct text){ 0, 0 };
    for (uint32_t i = 0; i < n; i++) if (text.at[i] != prefix[i]) return (struct text){ 0, 0 };
    return (struct text){ text.at + n, text.length - n };
}
static struct text before(struct text text, char end) {
    uint32_t n = 0;
    while (n < text.length && text.at[n] != end) n++;
    return (struct text){ text.at, n };
}
static uint32_t number(struct text text) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < text.length; i++) n = n * 10 + (uint32_t)(text.at[i] - '0');
    return n;
}

/* The two ends of a new stream or future. */
static handle readable(uint64_t pair) { return (handle)pair; }
static handle writable(uint64_t pair) { return (handle)(pair >> 32); }

/* The end of what was begun at one end of a stream or future. */
static uint32_t finished(handle end, uint32_t result) {
    static handle set;
    static uint32_t event[2];
    if (result != UINT32_MAX) return result;
    if (!set) set = set_new();
    set_join(end, set);
    set_wait(set, event);
    set_join(end, 0);
    return event[1];
}

/* Writes all; 0 when the reader is gone. */
static int write_all(uint32_t write(handle, const void *, uint32_t), handle to, struct text text) {
    while (text.length) {
        uint32_t moved = finished(to, write(to, text.at, text.length));
        text.at += moved >> 4;
        text.length -= moved >> 4;
        if (moved & 15) return 0;
    }
    return 1;
}

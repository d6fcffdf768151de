/* The canonical ABI of guests.wit by hand: no C library, no generated code, so that a
 * component has a few kilobytes and is built in a moment. Results that do not fit one
 * value are stored at `out`: the first byte tells the case, the value follows aligned. */
#include <stdint.h>

#define IMPORT(module, name) __attribute__((import_module(module), import_name(name))) extern
#define EXPORT(name) __attribute__((export_name(name)))

typedef int32_t handle;
struct text { const char *at; uint32_t length; };

/* A part of memory that results are stored in. */
static union { uint8_t tag; uint8_t bytes[64]; uint16_t halves[32]; uint32_t words[16]; uint64_t longs[8]; } out;

IMPORT("wasi:io/poll@0.2.0", "[method]pollable.block") void poll_block(handle);
IMPORT("wasi:io/poll@0.2.0", "[resource-drop]pollable") void poll_drop(handle);
IMPORT("wasi:io/streams@0.2.0", "[method]input-stream.blocking-read") void in_read(handle, uint64_t, void *);
IMPORT("wasi:io/streams@0.2.0", "[method]output-stream.blocking-write-and-flush") void out_write(handle, const void *, uint32_t, void *);
IMPORT("wasi:io/streams@0.2.0", "[resource-drop]output-stream") void out_drop(handle);
IMPORT("wasi:io/streams@0.2.0", "[resource-drop]input-stream") void in_drop(handle);
IMPORT("wasi:clocks/monotonic-clock@0.2.0", "subscribe-duration") handle clock_after(uint64_t);
IMPORT("wasi:cli/environment@0.2.0", "get-environment") void env_list(void *);
IMPORT("wasi:cli/environment@0.2.0", "get-arguments") void arg_list(void *);
IMPORT("wasi:cli/exit@0.2.0", "exit") void cli_exit(int32_t);
IMPORT("wasi:cli/stdout@0.2.0", "get-stdout") handle get_stdout(void);
IMPORT("wasi:cli/stderr@0.2.0", "get-stderr") handle get_stderr(void);
IMPORT("wasi:filesystem/preopens@0.2.0", "get-directories") void directories(void *);
IMPORT("wasi:filesystem/types@0.2.0", "[method]descriptor.open-at") void open_at(handle, int32_t, const char *, uint32_t, int32_t, int32_t, void *);
IMPORT("wasi:filesystem/types@0.2.0", "[method]descriptor.read") void file_read(handle, uint64_t, uint64_t, void *);

#define TYPES "wasi:http/types@0.2.0"
IMPORT(TYPES, "[constructor]fields") handle fields_new(void);
IMPORT(TYPES, "[method]fields.append") void fields_append(handle, const char *, uint32_t, const char *, uint32_t, void *);
IMPORT(TYPES, "[method]incoming-request.path-with-query") void request_path(handle, void *);
IMPORT(TYPES, "[resource-drop]incoming-request") void request_drop(handle);
IMPORT(TYPES, "[method]incoming-request.consume") void request_consume(handle, void *);
IMPORT(TYPES, "[method]incoming-body.stream") void body_stream(handle, void *);
IMPORT(TYPES, "[constructor]outgoing-response") handle response_new(handle);
IMPORT(TYPES, "[method]outgoing-response.set-status-code") int32_t response_status(handle, int32_t);
IMPORT(TYPES, "[method]outgoing-response.body") void response_body(handle, void *);
IMPORT(TYPES, "[method]outgoing-body.write") void body_write(handle, void *);
IMPORT(TYPES, "[static]outgoing-body.finish") void body_finish(handle, int32_t, handle, void *);
IMPORT(TYPES, "[static]response-outparam.set") void outparam_set(handle, int32_t, int32_t, int32_t, int64_t, int32_t, int32_t, int32_t, int32_t);
IMPORT(TYPES, "[constructor]outgoing-request") handle outgoing_new(handle);
IMPORT(TYPES, "[method]outgoing-request.set-path-with-query") int32_t outgoing_path(handle, int32_t, const char *, uint32_t);
IMPORT(TYPES, "[method]outgoing-request.set-scheme") int32_t outgoing_scheme(handle, int32_t, int32_t, const char *, uint32_t);
IMPORT(TYPES, "[method]outgoing-request.set-authority") int32_t outgoing_authority(handle, int32_t, const char *, uint32_t);
IMPORT("wasi:http/outgoing-handler@0.2.0", "handle") void outgoing_handle(handle, int32_t, handle, void *);
IMPORT(TYPES, "[method]future-incoming-response.subscribe") handle future_subscribe(handle);
IMPORT(TYPES, "[method]future-incoming-response.get") void future_get(handle, void *);
IMPORT(TYPES, "[method]incoming-response.status") int32_t incoming_status(handle);
IMPORT(TYPES, "[method]incoming-response.consume") void incoming_consume(handle, void *);

IMPORT("wasi:sockets/instance-network@0.2.0", "instance-network") handle network_get(void);
IMPORT("wasi:sockets/ip-name-lookup@0.2.0", "resolve-addresses") void lookup_start(handle, const char *, uint32_t, void *);
IMPORT("wasi:sockets/ip-name-lookup@0.2.0", "[method]resolve-address-stream.subscribe") handle lookup_subscribe(handle);
IMPORT("wasi:sockets/ip-name-lookup@0.2.0", "[method]resolve-address-stream.resolve-next-address") void lookup_next(handle, void *);
IMPORT("wasi:sockets/tcp-create-socket@0.2.0", "create-tcp-socket") void tcp_create(int32_t, void *);
IMPORT("wasi:sockets/tcp@0.2.0", "[method]tcp-socket.start-bind") void tcp_bind(handle, handle, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, void *);
IMPORT("wasi:sockets/tcp@0.2.0", "[method]tcp-socket.finish-bind") void tcp_bound(handle, void *);
IMPORT("wasi:sockets/tcp@0.2.0", "[method]tcp-socket.start-listen") void tcp_listen(handle, void *);
IMPORT("wasi:sockets/tcp@0.2.0", "[method]tcp-socket.finish-listen") void tcp_listening(handle, void *);
IMPORT("wasi:sockets/tcp@0.2.0", "[method]tcp-socket.accept") void tcp_accept(handle, void *);
IMPORT("wasi:sockets/tcp@0.2.0", "[method]tcp-socket.subscribe") handle tcp_subscribe(handle);
IMPORT("wasi:sockets/tcp@0.2.0", "[resource-drop]tcp-socket") void tcp_drop(handle);
IMPORT("wasi:sockets/udp-create-socket@0.2.0", "create-udp-socket") void udp_create(int32_t, void *);
IMPORT("wasi:sockets/udp@0.2.0", "[method]udp-socket.start-bind") void udp_bind(handle, handle, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, void *);
IMPORT("wasi:sockets/udp@0.2.0", "[method]udp-socket.finish-bind") void udp_bound(handle, void *);
IMPORT("wasi:sockets/udp@0.2.0", "[method]udp-socket.stream") void udp_stream(handle, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, int32_t, void *);
IMPORT("wasi:sockets/udp@0.2.0", "[method]outgoing-datagram-stream.check-send") void udp_check(handle, void *);
IMPORT("wasi:sockets/udp@0.2.0", "[method]outgoing-datagram-stream.send") void udp_send(handle, const void *, uint32_t, void *);
IMPORT("wasi:sockets/udp@0.2.0", "[method]incoming-datagram-stream.subscribe") handle udp_subscribe(handle);
IMPORT("wasi:sockets/udp@0.2.0", "[method]incoming-datagram-stream.receive") void udp_receive(handle, uint64_t, void *);

/* Memory for what the host hands over; an instance lives for one request, or is done soon,
 * or puts `heap` back itself. */
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
static struct text word(int n) { return (struct text){ (const char *)(uintptr_t)out.words[n], out.words[n + 1] }; }

/* What is left of a text behind a prefix; `at` is 0 if it does not begin so. */
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

/* 0 when the reader is gone. The host takes 4096 bytes at once. */
static int say(handle stream, struct text text) {
    while (text.length) {
        uint32_t piece = text.length < 4096 ? text.length : 4096;
        out_write(stream, text.at, piece, &out);
        if (out.tag) return 0;
        text.at += piece;
        text.length -= piece;
    }
    return 1;
}
static void say_number(handle stream, uint32_t n) {
    char digits[10]; int at = 10;
    do { digits[--at] = (char)('0' + n % 10); n /= 10; } while (n);
    say(stream, (struct text){ digits + at, (uint32_t)(10 - at) });
}

/* Copies a stream to its end. */
static void copy(handle from, handle to) {
    uintptr_t mark = heap;
    for (;;) {
        heap = mark;
        in_read(from, 4096, &out);
        if (out.tag) return;
        if (!say(to, word(1))) return;
    }
}

static void wait_ms(uint32_t ms) {
    handle clock = clock_after((uint64_t)ms * 1000000);
    poll_block(clock);
    poll_drop(clock);
}

/* `http/HOST:PORT/PATH` or `https/...`: status and body, or the number of the error. */
static void fetch(struct text what, handle to) {
    struct text rest = after(what, "https/");
    int secure = rest.at != 0;
    if (!secure) rest = after(what, "http/");
    struct text authority = before(rest, '/');
    handle request = outgoing_new(fields_new());
    outgoing_scheme(request, 1, secure, 0, 0);
    outgoing_authority(request, 1, authority.at, authority.length);
    outgoing_path(request, 1, rest.at + authority.length, rest.length - authority.length);
    outgoing_handle(request, 0, 0, &out);
    if (out.tag) { say(to, string("refused ")); say_number(to, out.bytes[8]); say(to, string("\n")); return; }
    handle future = (handle)out.words[2];
    handle ready = future_subscribe(future);
    poll_block(ready);
    poll_drop(ready);
    /* option at 0, result at 8, result at 16, value at 24 */
    future_get(future, &out);
    if (out.bytes[16]) { say(to, string("error ")); say_number(to, out.bytes[24]); say(to, string("\n")); return; }
    handle response = (handle)out.words[6];
    say(to, string("status "));
    say_number(to, (uint32_t)incoming_status(response));
    say(to, string("\n"));
    incoming_consume(response, &out);
    body_stream((handle)out.words[1], &out);
    copy((handle)out.words[1], to);
}

/* The addresses of a name, one a line, or the number of the error. */
static void lookup(struct text name, handle to) {
    handle network = network_get();
    lookup_start(network, name.at, name.length, &out);
    if (out.tag) { say(to, string("error ")); say_number(to, out.bytes[4]); say(to, string("\n")); return; }
    handle stream = (handle)out.words[1];
    handle ready = lookup_subscribe(stream);
    poll_block(ready);
    for (;;) {
        /* result at 0, option at 2, variant at 4, address at 6 */
        lookup_next(stream, &out);
        if (out.tag) { say(to, string("error ")); say_number(to, out.bytes[2]); say(to, string("\n")); return; }
        if (!out.bytes[2]) return;
        int v6 = out.bytes[4];
        uint16_t parts[8];
        for (int n = 0; n < 8; n++) parts[n] = v6 ? out.halves[3 + n] : out.bytes[6 + n];
        for (int n = 0; n < (v6 ? 8 : 4); n++) {
            if (n) say(to, string(v6 ? ":" : "."));
            say_number(to, parts[n]);
        }
        say(to, string("\n"));
    }
}

/* Sends `ping` to 127.0.0.1:PORT and says what comes back. */
static void udp(uint32_t port, handle to) {
    udp_create(0, &out);
    if (out.tag) { say(to, string("error create\n")); return; }
    handle socket = (handle)out.words[1];
    udp_bind(socket, network_get(), 0, 0, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, &out);
    if (out.tag) { say(to, string("error bind\n")); return; }
    udp_bound(socket, &out);
    udp_stream(socket, 1, 0, (int32_t)port, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, &out);
    if (out.tag) { say(to, string("error stream\n")); return; }
    handle in = (handle)out.words[1], sender = (handle)out.words[2];
    static struct { const char *at; uint32_t length; uint8_t option; uint8_t none[43]; } datagram = { "ping", 4, 0, { 0 } };
    udp_check(sender, &out);
    udp_send(sender, &datagram, 1, &out);
    if (out.tag) { say(to, string("error send\n")); return; }
    for (;;) {
        udp_receive(in, 1, &out);
        if (out.tag) { say(to, string("error receive\n")); return; }
        if (out.words[2]) break;
        handle ready = udp_subscribe(in);
        poll_block(ready);
        poll_drop(ready);
    }
    const uint32_t *first = (const uint32_t *)(uintptr_t)out.words[1];
    struct text data = { (const char *)(uintptr_t)first[0], first[1] };
    say(to, data);
    say(to, string("\n"));
}

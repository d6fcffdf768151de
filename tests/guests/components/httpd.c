/* wasi:cli/command that listens by itself, as a web server of wasm32-wasip2 does: `httpd PORT`
 * answers every request with 200, one connection after the other. */
#include "wasi.h"

#define WOULD_BLOCK 8

static handle log_to;

static int32_t failed(const char *what) {
    uint32_t error = out.bytes[1];
    say(log_to, string("httpd: "));
    say(log_to, string(what));
    say(log_to, string(": error "));
    say_number(log_to, error);
    say(log_to, string("\n"));
    return 1;
}

/* Reads to the end of the request's head; 0 if the client leaves before. */
static int head(handle from) {
    static const char end[] = "\r\n\r\n";
    uint32_t seen = 0;
    for (;;) {
        in_read(from, 4096, &out);
        if (out.tag) return 0;
        struct text piece = word(1);
        for (uint32_t n = 0; n < piece.length; n++) {
            seen = piece.at[n] == end[seen] ? seen + 1 : piece.at[n] == end[0];
            if (seen == 4) return 1;
        }
    }
}

EXPORT("wasi:cli/run@0.2.0#run") int32_t run(void) {
    log_to = get_stdout();
    arg_list(&out);
    struct text *args = (struct text *)(uintptr_t)out.words[0];
    uint32_t port = out.words[1] == 2 ? number(args[1]) : 0;
    if (!port) { say(log_to, string("httpd: wants a port\n")); return 1; }
    tcp_create(0, &out);
    if (out.tag) { out.bytes[1] = out.bytes[4]; return failed("create a socket"); }
    handle listener = (handle)out.words[1];
    tcp_bind(listener, network_get(), 0, (int32_t)port, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, &out);
    if (out.tag) return failed("bind");
    tcp_bound(listener, &out);
    if (out.tag) return failed("bind");
    tcp_listen(listener, &out);
    if (out.tag) return failed("listen");
    tcp_listening(listener, &out);
    if (out.tag) return failed("listen");
    say(log_to, string("httpd: listening on port "));
    say_number(log_to, port);
    say(log_to, string("\n"));
    handle ready = tcp_subscribe(listener);
    for (uintptr_t mark = heap;; heap = mark) {
        tcp_accept(listener, &out);
        if (out.tag) {
            if (out.bytes[4] != WOULD_BLOCK) { out.bytes[1] = out.bytes[4]; return failed("accept"); }
            poll_block(ready);
            continue;
        }
        handle peer = (handle)out.words[1], from = (handle)out.words[2], to = (handle)out.words[3];
        if (head(from))
            say(to, string("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 6\r\nconnection: close\r\n\r\nhello\n"));
        in_drop(from);
        out_drop(to);
        tcp_drop(peer);
    }
}

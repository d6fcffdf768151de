/* wasi:http/proxy: the path says what to do. */
#include "wasi.h"

static handle stream;
static handle body;

/* Begins a response with one more header; writes go to `stream`. */
static void begin(handle reply, int32_t status, const char *name, const char *value) {
    handle fields = fields_new();
    if (name) fields_append(fields, name, length(name), value, length(value), &out);
    handle response = response_new(fields);
    response_status(response, status);
    response_body(response, &out);
    body = (handle)out.words[1];
    body_write(body, &out);
    stream = (handle)out.words[1];
    outparam_set(reply, 0, response, 0, 0, 0, 0, 0, 0);
}

static void finish(void) {
    out_drop(stream);
    body_finish(body, 0, 0, &out);
}

static void print_file(struct text path) {
    directories(&out);
    handle root = *(handle *)(uintptr_t)out.words[0];
    open_at(root, 1, path.at, path.length, 0, 1, &out);
    if (out.tag) { say(stream, string("no such file\n")); return; }
    file_read((handle)out.words[1], 65536, 0, &out);
    say(stream, word(1));
}

EXPORT("wasi:http/incoming-handler@0.2.0#handle") void handle_request(handle request, handle reply) {
    request_path(request, &out);
    struct text path = word(1), rest;
    if (after(path, "/trap").at) __builtin_trap();
    if (after(path, "/spin").at) for (volatile uint32_t n = 0;; n++) {}
    if (after(path, "/silent").at) return;
    if (after(path, "/exit").at) cli_exit(1);
    if (after(path, "/error").at) { outparam_set(reply, 1, 36, 0, 0, 0, 0, 0, 0); return; }
    if (after(path, "/hog").at) {
        while (__builtin_wasm_memory_grow(0, 16) != (uintptr_t)-1) {}
        begin(reply, 200, 0, 0);
        say(stream, string("full\n"));
    } else if (after(path, "/late-trap").at) {
        begin(reply, 200, 0, 0);
        say(stream, string("begin\n"));
        wait_ms(100);
        __builtin_trap();
    } else if (after(path, "/leak").at) {
        begin(reply, 200, 0, 0);
        say(stream, string("forgotten\n"));
        return;
    } else if (after(path, "/late-spin").at) {
        begin(reply, 200, 0, 0);
        say(stream, string("begin\n"));
        for (volatile uint32_t n = 0;; n++) {}
    } else if (after(path, "/short").at) {
        begin(reply, 200, "content-length", "100");
        say(stream, string("too short\n"));
        wait_ms(100);
    } else if (after(path, "/broken").at) {
        handle fields = fields_new();
        fields_append(fields, "a b\n", 4, "c\r\nd: e", 7, &out);
        int name = out.tag;
        fields_append(fields, "connection", 10, "close", 5, &out);
        begin(reply, name && out.tag ? 200 : 500, "x-fine", "yes");
        say(stream, string("both refused\n"));
    } else if (after(path, "/stream").at) {
        static char block[4096];
        begin(reply, 200, 0, 0);
        while (say(stream, (struct text){ block, sizeof block })) {}
    } else if (after(path, "/echo").at) {
        request_consume(request, &out);
        body_stream((handle)out.words[1], &out);
        handle in = (handle)out.words[1];
        begin(reply, 200, 0, 0);
        copy(in, stream);
    } else if (after(path, "/env").at || after(path, "/args").at) {
        int pairs = after(path, "/env").at != 0;
        begin(reply, 200, 0, 0);
        if (pairs) env_list(&out); else arg_list(&out);
        struct text *texts = (struct text *)(uintptr_t)out.words[0];
        uint32_t count = out.words[1];
        for (uint32_t n = 0; n < count; n++) {
            say(stream, texts[pairs ? 2 * n : n]);
            if (pairs) { say(stream, string("=")); say(stream, texts[2 * n + 1]); }
            say(stream, string("\n"));
        }
    } else if ((rest = after(path, "/file/")).at) {
        begin(reply, 200, 0, 0);
        print_file(rest);
    } else if (after(path, "/log").at) {
        say(get_stdout(), string("said on stdout\n"));
        say(get_stderr(), string("said on stderr\n"));
        begin(reply, 200, 0, 0);
        say(stream, string("logged\n"));
    } else if ((rest = after(path, "/wait/")).at) {
        say(get_stdout(), string("waiting\n"));
        wait_ms(number(rest));
        begin(reply, 200, 0, 0);
        say(stream, string("waited\n"));
    } else if ((rest = after(path, "/drip/")).at) {
        begin(reply, 200, 0, 0);
        for (int n = 0; n < 5; n++) { say(stream, string("drip\n")); wait_ms(number(rest)); }
    } else if ((rest = after(path, "/fetch/")).at) {
        begin(reply, 200, 0, 0);
        fetch(rest, stream);
    } else if ((rest = after(path, "/lookup/")).at) {
        begin(reply, 200, 0, 0);
        lookup(rest, stream);
    } else {
        begin(reply, 200, "x-guest", "proxy");
        say(stream, string("hello from a component\n"));
    }
    finish();
    request_drop(request);
}

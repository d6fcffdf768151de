/* wasi:http/service 0.3: the path says what to do. */
#include "wasi3.h"

IMPORT("[export]wasi:http/handler@0.3.0", "[task-return]handle") void handle_return(int32_t, int32_t, int32_t, int64_t, int32_t, int32_t, int32_t, int32_t);

static handle to, trailers;

/* Answers; the body follows. */
static void begin(int32_t some, handle contents) {
    handle fields = fields_new();
    fields_append(fields, "x-guest", 7, "service", 7, &out);
    uint64_t pair = trailers_new();
    trailers = writable(pair);
    response_new(fields, some, contents, readable(pair), &out);
    handle response = (handle)out.words[0];
    sent_drop((handle)out.words[1]);
    handle_return(0, response, 0, 0, 0, 0, 0, 0);
}

static void begin_body(void) {
    uint64_t pair = body_new();
    to = writable(pair);
    begin(1, readable(pair));
}

static int say(struct text text) { return write_all(body_write, to, text); }

static void end(void) {
    static const uint64_t none[8];
    finished(trailers, trailers_write(trailers, none));
    trailers_end(trailers);
}

EXPORT("[async-lift]wasi:http/handler@0.3.0#handle") int32_t handle_request(handle request) {
    request_path(request, &out);
    struct text path = { (const char *)(uintptr_t)out.words[1], out.words[2] }, rest;
    if (after(path, "/trap").at) __builtin_trap();
    if (after(path, "/spin").at) for (volatile uint32_t n = 0;; n++) {}
    if (after(path, "/error").at) { handle_return(1, 36, 0, 0, 0, 0, 0, 0); return EXIT; }
    if (after(path, "/echo").at) {
        request_consume(request, readable(request_result()), &out);
        begin(1, (handle)out.words[0]);
        end();
        return EXIT;
    }
    if (after(path, "/empty").at) { begin(0, 0); end(); return EXIT; }
    if ((rest = after(path, "/wait/")).at) wait_for((uint64_t)number(rest) * 1000000);
    if (after(path, "/authority").at) {
        request_authority(request, &out);
        struct text authority = { (const char *)(uintptr_t)out.words[1], out.words[2] };
        begin_body();
        say(authority);
    } else if (after(path, "/count").at) {
        kv_open("hits", 4, &out);
        kv_add((handle)out.words[1], "all", 3, 1, &out);
        char digit = (char)('0' + out.longs[1]);
        begin_body();
        say((struct text){ &digit, 1 });
    } else if (after(path, "/late-trap").at) {
        begin_body();
        say(string("begin\n"));
        wait_for(100000000);
        __builtin_trap();
    } else if ((rest = after(path, "/drip/")).at) {
        begin_body();
        for (int n = 0; n < 5; n++) { say(string("drip\n")); wait_for((uint64_t)number(rest) * 1000000); }
    } else if (after(path, "/stream").at) {
        static char block[4096];
        begin_body();
        while (say((struct text){ block, sizeof block })) {}
    } else {
        begin_body();
        say(string("hello from 0.3\n"));
    }
    body_end(to);
    end();
    return EXIT;
}

EXPORT("[callback][async-lift]wasi:http/handler@0.3.0#handle") int32_t handle_callback(int32_t event, int32_t first, int32_t second) {
    (void)event; (void)first; (void)second;
    __builtin_trap();
}

/* wasi:cli/command 0.3: each argument is something to do. */
#include "wasi3.h"
#include "files.h"

IMPORT("[export]wasi:cli/run@0.3.0", "[task-return]run") void run_return(int32_t);

static handle to;

static void say(struct text text) { write_all(stdout_write, to, text); }
static void say_number(uint32_t n) {
    char digits[10]; int at = 10;
    do { digits[--at] = (char)('0' + n % 10); n /= 10; } while (n);
    say((struct text){ digits + at, (uint32_t)(10 - at) });
}

static void lookup(struct text name) {
    resolve(name.at, name.length, &out);
    if (out.tag) { say(string("error ")); say_number(out.bytes[4]); say(string("\n")); return; }
    /* Each has 18 bytes: a case, and from the second on its address. */
    const uint8_t *found = (const uint8_t *)(uintptr_t)out.words[1];
    uint32_t count = out.words[2];
    for (uint32_t n = 0; n < count; n++, found += 18) {
        if (found[0]) { say(string("v6\n")); continue; }
        for (int part = 0; part < 4; part++) { if (part) say(string(".")); say_number(found[2 + part]); }
        say(string("\n"));
    }
}

/* `HOST:PORT/PATH`, by HTTP. */
static void fetch(struct text what) {
    struct text authority = before(what, '/');
    uint64_t trailers = request_trailers();
    request_new(fields_new(), 0, 0, readable(trailers), 0, 0, &out);
    handle request = (handle)out.words[0];
    request_set_scheme(request, 1, 0, 0, 0);
    request_set_authority(request, 1, authority.at, authority.length);
    request_set_path(request, 1, what.at + authority.length, what.length - authority.length);
    static const uint64_t none[8];
    request_trail(writable(trailers), none);
    client_send(request, &out);
    if (out.tag) { say(string("error ")); say_number(out.bytes[8]); say(string("\n")); return; }
    handle response = (handle)out.words[2];
    say(string("status "));
    say_number((uint32_t)response_status(response));
    say(string("\n"));
    response_consume(response, readable(response_result()), &out);
    handle from = (handle)out.words[0];
    static char piece[4096];
    for (uint32_t moved = 0; !(moved & 15);) {
        moved = finished(from, response_read(from, piece, sizeof piece));
        say((struct text){ piece, moved >> 4 });
    }
}

static int file(struct text what) {
    directories(&out);
    handle root = *(handle *)(uintptr_t)out.words[0];
    /* The errors of 0.3 may carry a text, so they are aligned. */
    if (!file_call(root, what, 4)) return 0;
    if (out.tag) { uint32_t error = out.bytes[4]; say(string("error ")); say_number(error); say(string("\n")); }
    else say(string("ok\n"));
    return 1;
}

EXPORT("[async-lift]wasi:cli/run@0.3.0#run") int32_t run(void) {
    uint64_t pair = stdout_new();
    to = writable(pair);
    handle done = stdout_start(readable(pair));
    arg_list(&out);
    struct text *args = (struct text *)(uintptr_t)out.words[0], rest;
    uint32_t count = out.words[1];
    int32_t result = 0;
    for (uint32_t n = 1; n < count; n++) {
        if ((rest = after(args[n], "say/")).at) { say(rest); say(string("\n")); }
        else if ((rest = after(args[n], "wait/")).at) wait_for((uint64_t)number(rest) * 1000000);
        else if ((rest = after(args[n], "lookup/")).at) lookup(rest);
        else if ((rest = after(args[n], "fetch/")).at) fetch(rest);
        else if (file(args[n])) continue;
        else if (after(args[n], "trap").at) __builtin_trap();
        else if (after(args[n], "fail").at) result = 1;
        /* The rest is done when the result is known already. */
        else if (after(args[n], "return").at) { run_return(result); result = -1; }
    }
    if (result >= 0) run_return(result);
    stdout_end(to);
    finished(done, stdout_done(done, &out));
    stdout_drop(done);
    return EXIT;
}

EXPORT("[callback][async-lift]wasi:cli/run@0.3.0#run") int32_t run_callback(int32_t event, int32_t first, int32_t second) {
    (void)event; (void)first; (void)second;
    __builtin_trap();
}

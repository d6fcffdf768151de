/* wasi:http/proxy: the least that answers, for measurements. */
#include "wasi.h"

EXPORT("wasi:http/incoming-handler@0.2.0#handle") void handle_request(handle request, handle reply) {
    request_drop(request);
    handle response = response_new(fields_new());
    response_body(response, &out);
    handle body = (handle)out.words[1];
    body_write(body, &out);
    handle stream = (handle)out.words[1];
    outparam_set(reply, 0, response, 0, 0, 0, 0, 0, 0);
    say(stream, string("hello\n"));
    out_drop(stream);
    body_finish(body, 0, 0, &out);
}

/* A library: the words of a greeting, with the mark of another library behind them. What it
 * says on standard error shows whose log it writes to. */
#include "wasi.h"

IMPORT("demo:words/tone@1.0.0", "mark") uint32_t mark(void);

static struct text result;

static char *put(char *at, struct text text) {
    for (uint32_t n = 0; n < text.length; n++) *at++ = text.at[n];
    return at;
}

EXPORT("demo:words/words@1.0.0#greet") struct text *greet(const char *whom, uint32_t length) {
    say(get_stderr(), string("words were asked\n"));
    struct text name = { whom, length };
    if (after(name, "for ever").at) for (volatile uint32_t n = 0;; n++) {}
    char *begin = cabi_realloc(0, 0, 1, length + 16), *at = begin;
    at = put(at, string("hello "));
    at = put(at, (struct text){ whom, length });
    *at++ = (char)mark();
    *at++ = '\n';
    result = (struct text){ begin, (uint32_t)(at - begin) };
    return &result;
}

/* A component without a main: functions to be chosen by name. */
#include "wasi.h"

static int32_t *result(int32_t tag, const char *text) {
    static int32_t area[3];
    area[0] = tag;
    area[1] = (int32_t)(uintptr_t)text;
    area[2] = (int32_t)length(text);
    return area;
}

EXPORT("migrate") int32_t *migrate(void) {
    say(get_stdout(), string("migrating\n"));
    arg_list(&out);
    return result(out.words[1] > 1, "the database is not there");
}
EXPORT("seed") void seed(void) { say(get_stdout(), string("seeding\n")); }
EXPORT("add") uint32_t add(uint32_t n) { return n + 1; }
EXPORT("admin#cleanup") void cleanup(void) { say(get_stdout(), string("cleaning\n")); }

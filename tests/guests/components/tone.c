/* A library that imports nothing. */
#include "wasi.h"

EXPORT("demo:words/tone@1.0.0#mark") uint32_t mark(void) { return '!'; }

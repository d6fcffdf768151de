/* A name service library as a hostile image would carry it: merely being loaded, it
 * leaves a mark. libc of any process that looks up a user or host by name in that
 * image's root would load it; ours must not. */
#include <fcntl.h>
#include <unistd.h>

__attribute__((constructor)) static void loaded(void) {
    static const char said[] = "HOSTILE LIBRARY LOADED\n";
    int file = open("/volume/loaded", O_CREAT | O_WRONLY, 0644);
    if (file >= 0)
        close(file);
    if (write(2, said, sizeof said - 1) < 0)
        _exit(99);
}

/* The listening socket that the runtime hands over: the first descriptor that is a
 * stream socket, because its number depends on how many directories were opened before. */
#include <wasi/api.h>

static int find_listener(void) {
    for (int fd = 3; fd < 64; fd++) {
        __wasi_fdstat_t status;
        if (__wasi_fd_fdstat_get(fd, &status) == 0 &&
            status.fs_filetype == __WASI_FILETYPE_SOCKET_STREAM)
            return fd;
    }
    return -1;
}

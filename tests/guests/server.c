/* A web server on the listening socket that the runtime hands over. Each request is
 * answered with the server's name, the number of the request and the file in GREETING,
 * if any. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "listener.h"

static void answer(int client, unsigned number) {
    char request[2048];
    size_t length = 0;
    while (length < sizeof request - 1) {
        ssize_t count = recv(client, request + length, sizeof request - 1 - length, 0);
        if (count <= 0)
            break;
        length += (size_t)count;
        request[length] = 0;
        if (strstr(request, "\r\n\r\n"))
            break;
    }
    request[length] = 0;
    char greeting[512] = "";
    const char *path = getenv("GREETING");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (file) {
        size_t count = fread(greeting, 1, sizeof greeting - 1, file);
        greeting[count] = 0;
        fclose(file);
    }
    char body[1024], reply[2048];
    int body_length = snprintf(body, sizeof body, "hello from a wasm server, request %u\n%s", number, greeting);
    int reply_length = snprintf(reply, sizeof reply,
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s",
        body_length, body);
    for (int sent = 0; sent < reply_length;) {
        ssize_t count = send(client, reply + sent, (size_t)(reply_length - sent), 0);
        if (count <= 0)
            break;
        sent += (int)count;
    }
    char *end = strpbrk(request, "\r\n");
    if (end)
        *end = 0;
    printf("served %s\n", request);
    fflush(stdout);
}

int main(void) {
    int listener = find_listener();
    if (listener < 0) {
        fprintf(stderr, "no listening socket was handed over\n");
        return 7;
    }
    printf("listening\n");
    fflush(stdout);
    for (unsigned number = 1;; number++) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) {
            if (errno == EAGAIN || errno == EINTR) {
                number--;
                continue;
            }
            printf("listener closed: %s\n", strerror(errno));
            return 0;
        }
        answer(client, number);
        shutdown(client, SHUT_RDWR);
        close(client);
    }
}

/* A gRPC health server (grpc.health.v1.Health/Check) on the listening socket that the
 * runtime hands over, with just as much HTTP/2 as that takes: every request is answered
 * SERVING, or NOT_SERVING while the file named by DOWN exists. One connection at a time. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "listener.h"

enum { DATA = 0, HEADERS = 1, SETTINGS = 4, PING = 6, GOAWAY = 7 };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4 };
enum { HEADER = 9, LARGEST = 16384 };

static int receive(int client, uint8_t *bytes, size_t count) {
    while (count > 0) {
        ssize_t got = recv(client, bytes, count, 0);
        if (got <= 0)
            return 0;
        bytes += got;
        count -= (size_t)got;
    }
    return 1;
}

static void transmit(int client, int type, int flags, uint32_t stream, const void *payload, size_t length) {
    uint8_t frame[HEADER + 64] = {
        0, (uint8_t)(length >> 8), (uint8_t)length, (uint8_t)type, (uint8_t)flags,
        (uint8_t)(stream >> 24), (uint8_t)(stream >> 16), (uint8_t)(stream >> 8), (uint8_t)stream,
    };
    if (length > sizeof frame - HEADER)
        abort();
    memcpy(frame + HEADER, payload, length);
    for (size_t sent = 0; sent < HEADER + length;) {
        ssize_t count = send(client, frame + sent, HEADER + length - sent, 0);
        if (count <= 0)
            return;
        sent += (size_t)count;
    }
}

static void answer(int client, uint32_t stream) {
    /* :status 200 is number 8 of HPACK's table, the name content-type number 31. */
    static const char head[] = "\x88\x0f\x10\x10" "application/grpc";
    static const char trailer[] = "\0\x0bgrpc-status\x01" "0";
    const char *down = getenv("DOWN");
    int serving = !(down && access(down, F_OK) == 0);
    /* A message of two bytes: field 1, the status, is 1 or 2. */
    char message[] = {0, 0, 0, 0, 2, 8, serving ? 1 : 2};
    transmit(client, HEADERS, END_HEADERS, stream, head, sizeof head - 1);
    transmit(client, DATA, 0, stream, message, sizeof message);
    transmit(client, HEADERS, END_HEADERS | END_STREAM, stream, trailer, sizeof trailer - 1);
    printf("checked: %s\n", serving ? "serving" : "not serving");
    fflush(stdout);
}

static void serve(int client) {
    static uint8_t payload[LARGEST];
    if (!receive(client, payload, strlen("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")))
        return;
    transmit(client, SETTINGS, 0, 0, "", 0);
    uint8_t head[HEADER];
    while (receive(client, head, HEADER)) {
        size_t length = (size_t)head[0] << 16 | (size_t)head[1] << 8 | head[2];
        int type = head[3], flags = head[4];
        uint32_t stream = (uint32_t)(head[5] & 0x7f) << 24 | (uint32_t)head[6] << 16 | (uint32_t)head[7] << 8 | head[8];
        if (length > LARGEST || !receive(client, payload, length))
            return;
        if (type == SETTINGS && !(flags & ACK))
            transmit(client, SETTINGS, ACK, 0, "", 0);
        else if (type == PING && !(flags & ACK))
            transmit(client, PING, ACK, 0, payload, length);
        else if ((type == HEADERS || type == DATA) && flags & END_STREAM)
            answer(client, stream);
        else if (type == GOAWAY)
            return;
    }
}

int main(void) {
    int listener = find_listener();
    if (listener < 0) {
        fprintf(stderr, "no listening socket was handed over\n");
        return 7;
    }
    printf("listening\n");
    fflush(stdout);
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0)
            return 0;
        serve(client);
        shutdown(client, SHUT_RDWR);
        close(client);
    }
}

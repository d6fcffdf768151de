/*
 * What critest's images hold besides busybox, one static program under several names:
 *
 *   pgrep NAME        pids whose command name contains NAME
 *   ipcs -m           ids of the shared memory segments
 *   nginx, httpd      HTTP 200 to everybody; a master with a worker, as nginx has
 *   nonewprivs        prints its effective user (its file is setuid root)
 *   pause             waits for a signal
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Paths where the images have the server, see tests/src/critest/images.rs. */
#define NGINX "/usr/sbin/nginx"
#define PID_FILE "/var/run/nginx.pid"
#define MASTER "nginx: master process"

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int pgrep(int argc, char **argv)
{
	struct dirent *entry;
	char path[300], name[64];
	int found = 0;
	DIR *proc;

	if (argc != 2) {
		fputs("usage: pgrep NAME\n", stderr);
		return 2;
	}
	proc = opendir("/proc");
	if (!proc)
		die("pgrep: open /proc");
	while ((entry = readdir(proc))) {
		FILE *comm;

		if (!isdigit((unsigned char)entry->d_name[0]) || atoi(entry->d_name) == getpid())
			continue;
		snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
		comm = fopen(path, "r");
		if (!comm)
			continue; /* ended meanwhile */
		if (fgets(name, sizeof name, comm) && strstr(name, argv[1])) {
			puts(entry->d_name);
			found = 1;
		}
		fclose(comm);
	}
	closedir(proc);
	return !found;
}

static int ipcs(int argc, char **argv)
{
	FILE *table = fopen("/proc/sysvipc/shm", "r");
	char line[512];
	int id;

	if (argc != 2 || strcmp(argv[1], "-m")) {
		fputs("usage: ipcs -m\n", stderr);
		return 2;
	}
	if (!table)
		die("ipcs: open /proc/sysvipc/shm");
	puts("shared memory segments, by id");
	while (fgets(line, sizeof line, table))
		if (sscanf(line, "%*d %d", &id) == 1)
			printf("%d\n", id);
	fclose(table);
	return 0;
}

static const char ANSWER[] = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
			     "Content-Length: 6\r\nConnection: close\r\n\r\nhello\n";

static void serve(int listener)
{
	signal(SIGPIPE, SIG_IGN);
	for (;;) {
		char request[4096];
		size_t held = 0;
		int peer = accept(listener, NULL, NULL);
		ssize_t got = 0;

		if (peer < 0) {
			if (errno == EINTR || errno == ECONNABORTED)
				continue;
			die("accept");
		}
		/* To the end of the head: closing with unread bytes resets the connection. */
		while (held < sizeof request - 1 && (got = read(peer, request + held, sizeof request - 1 - held)) > 0) {
			held += (size_t)got;
			request[held] = 0;
			if (strstr(request, "\r\n\r\n"))
				break;
		}
		if (held && write(peer, ANSWER, sizeof ANSWER - 1) < 0 && errno != EPIPE && errno != ECONNRESET)
			perror("write");
		close(peer);
	}
}

static int listen_on(const char *address, const char *port)
{
	struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons((in_port_t)atoi(port))};
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

	if (listener < 0)
		die("socket");
	if (inet_pton(AF_INET, address, &name.sin_addr) != 1) {
		fprintf(stderr, "%s: not an IPv4 address\n", address);
		exit(2);
	}
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(listener, (struct sockaddr *)&name, sizeof name) || listen(listener, 64))
		die("listen");
	return listener;
}

/* The first process of a namespace gets only those signals that it has a handler for. */
static void end(int number)
{
	(void)number;
	_exit(0);
}

static void end_at_signals(void)
{
	signal(SIGTERM, end);
	signal(SIGINT, end);
	signal(SIGQUIT, end);
}

/* argv: title, address, port */
static int master(char **argv)
{
	int listener = listen_on(argv[1], argv[2]);
	FILE *file = fopen(PID_FILE, "w");
	pid_t worker;

	if (!file || fprintf(file, "%d\n", getpid()) < 0 || fclose(file))
		die(PID_FILE);
	worker = fork();
	if (worker < 0)
		die("fork");
	if (worker == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(listener);
	}
	end_at_signals();
	while (waitpid(worker, NULL, 0) != worker)
		;
	fputs("nginx: the worker ended\n", stderr);
	return 1;
}

/* nginx [-g TEXT] [-l ADDRESS PORT]: runs itself again under the title of a master. */
static int nginx(int argc, char **argv)
{
	char *title[] = {MASTER " nginx", "0.0.0.0", "80", NULL};
	int i;

	for (i = 1; i < argc; i++)
		if (!strcmp(argv[i], "-l") && i + 2 < argc) {
			title[1] = argv[i + 1];
			title[2] = argv[i + 2];
		}
	execv(NGINX, title);
	die(NGINX);
	return 1;
}

static int httpd(void)
{
	int listener = listen_on("0.0.0.0", "80");

	end_at_signals();
	puts("httpd: listening on port 80");
	fflush(stdout);
	serve(listener);
	return 1;
}

int main(int argc, char **argv)
{
	const char *slash = strrchr(argv[0], '/');
	const char *name = slash ? slash + 1 : argv[0];

	if (!strncmp(argv[0], MASTER, sizeof MASTER - 1) && argc == 3)
		return master(argv);
	if (!strcmp(name, "pgrep"))
		return pgrep(argc, argv);
	if (!strcmp(name, "ipcs"))
		return ipcs(argc, argv);
	if (!strcmp(name, "nginx"))
		return nginx(argc, argv);
	if (!strcmp(name, "httpd"))
		return httpd();
	if (!strcmp(name, "nonewprivs")) {
		printf("Effective uid: %d\n", geteuid());
		return 0;
	}
	if (!strcmp(name, "pause")) {
		end_at_signals();
		for (;;)
			pause();
	}
	fprintf(stderr, "%s: not a name of this program\n", name);
	return 127;
}

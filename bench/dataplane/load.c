/*
 * The load of bench/dataplane: a server, and a client that measures one of three things for so many milliseconds.
 *
 *   load server PORT
 *   load connect|request|stream ADDRESS PORT MILLISECONDS
 *
 * connect: new connections, each with a byte there and a byte back, closed by the server. request: a byte there and a byte
 * back over one connection. stream: bytes in one direction over one connection. Prints nanoseconds per connection, per request,
 * or per KiB.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 17];

static void fail(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static void no_delay(int descriptor)
{
	int on = 1;

	setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/* One client at a time: 'c' is answered and closed, 'r' answered until the client goes, anything else read until then. */
static void serve(int port)
{
	struct sockaddr_in6 address = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int on = 1, listener = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 128))
		fail("listen");
	for (;;) {
		int client = accept(listener, NULL, NULL);
		ssize_t count;

		if (client < 0)
			fail("accept");
		no_delay(client);
		while ((count = read(client, buffer, sizeof(buffer))) > 0) {
			if (buffer[0] == 's')
				continue;
			if (write(client, buffer, 1) != 1 || buffer[0] == 'c')
				break;
		}
		close(client);
	}
}

static int open_connection(const struct addrinfo *to)
{
	int descriptor = socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (descriptor < 0 || connect(descriptor, to->ai_addr, to->ai_addrlen))
		fail("connect");
	no_delay(descriptor);
	return descriptor;
}

static void exchange(int descriptor, char what)
{
	if (write(descriptor, &what, 1) != 1 || read(descriptor, &what, 1) != 1)
		fail("exchange");
}

int main(int count, char **arguments)
{
	struct addrinfo hints = { .ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM }, *to;
	long long begin, end, done = 0;
	const char *what = count > 1 ? arguments[1] : "";
	int descriptor = -1;

	if (count == 3 && !strcmp(what, "server"))
		serve(atoi(arguments[2]));
	if (count != 5 || getaddrinfo(arguments[2], arguments[3], &hints, &to)) {
		fprintf(stderr, "usage: load server PORT | load connect|request|stream ADDRESS PORT MILLISECONDS\n");
		return 2;
	}
	if (strcmp(what, "connect"))
		descriptor = open_connection(to);
	memset(buffer, 's', sizeof(buffer));
	begin = now();
	end = begin + atoll(arguments[4]) * 1000000;
	do {
		if (!strcmp(what, "connect")) {
			descriptor = open_connection(to);
			exchange(descriptor, 'c');
			/* The server closes first: it is the one that remembers. */
			if (read(descriptor, buffer, 1) != 0)
				fail("end");
			close(descriptor);
			done++;
		} else if (!strcmp(what, "request")) {
			exchange(descriptor, 'r');
			done++;
		} else {
			ssize_t written = write(descriptor, buffer, sizeof(buffer));

			if (written <= 0)
				fail("write");
			done += written;
		}
	} while (now() < end);
	printf("%.3f\n", (double)(now() - begin) / done * (strcmp(what, "stream") ? 1 : 1024));
	return 0;
}

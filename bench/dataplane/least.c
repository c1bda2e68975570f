/*
 * Attaches least.bpf.c to pods' devices, says "attached", and stays until it is killed; the programs go with it.
 *
 *   least OBJECT redirects|tracks (DEVICE ADDRESS MAC GATEWAY-MAC)...
 */
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/if_ether.h>
#include <net/if.h>
#include <netinet/ether.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* BPF_TCX_INGRESS (Linux 6.6): headers may be older than the kernel. */
#define TCX_INGRESS 46

/* As in least.bpf.c. */
struct pod {
	__u32 device;
	__be32 address;
	__u8 mac[ETH_ALEN];
	__u8 gateway_mac[ETH_ALEN];
};

static void check(bool is_right, const char *what)
{
	if (is_right)
		return;
	perror(what);
	exit(1);
}

static void read_mac(const char *text, __u8 *mac)
{
	struct ether_addr *read = ether_aton(text);

	check(read, text);
	memcpy(mac, read, ETH_ALEN);
}

int main(int count, char **arguments)
{
	struct bpf_object *object;
	struct bpf_program *program;
	bool tracks;

	if (count < 7 || count % 4 != 3) {
		fprintf(stderr, "usage: least OBJECT redirects|tracks (DEVICE ADDRESS MAC GATEWAY-MAC)...\n");
		return 2;
	}
	object = bpf_object__open(arguments[1]);
	check(object, arguments[1]);
	/* The only constant. */
	tracks = !strcmp(arguments[2], "tracks");
	check(!bpf_map__set_initial_value(bpf_object__find_map_by_name(object, ".rodata"), &tracks, sizeof(tracks)), "tracks");
	check(!bpf_object__load(object), "load");
	program = bpf_object__find_program_by_name(object, "from_pod");
	for (int i = 3; i < count; i += 4) {
		struct pod pod = { .device = if_nametoindex(arguments[i]) };

		check(pod.device, arguments[i]);
		check(inet_pton(AF_INET, arguments[i + 1], &pod.address) == 1, arguments[i + 1]);
		read_mac(arguments[i + 2], pod.mac);
		read_mac(arguments[i + 3], pod.gateway_mac);
		check(!bpf_map_update_elem(bpf_object__find_map_fd_by_name(object, "pods_by_device"), &pod.device, &pod, 0),
		      "pods_by_device");
		check(!bpf_map_update_elem(bpf_object__find_map_fd_by_name(object, "pods_by_address"), &pod.address, &pod, 0),
		      "pods_by_address");
		check(bpf_link_create(bpf_program__fd(program), pod.device, TCX_INGRESS, NULL) >= 0, "attach");
	}
	puts("attached");
	fflush(stdout);
	pause();
}

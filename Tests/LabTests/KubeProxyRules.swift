// Rules as kube-proxy lays them out: its chains, their hooks and order, its marks and names.
import Lab
import NetworkTypes
import Testing

@testable import Lab

/// One dual-stack Service with a NodePort per port, in each way in which kube-proxy has written it.
struct KubeProxyRules {
  enum Layout: String, CaseIterable {
    case nftables
    case iptables = "iptables-nft"
    case legacy = "iptables-legacy"
  }

  var service: StaticService
  var pods: [LabPod]

  private struct Backend {
    var id: String
    var address: IPAddress
    var target: String
  }

  private func backends(_ port: StaticService.ServicePort, _ family: IPFamily) -> [Backend] {
    pods.compactMap { pod in
      pod.address(family).map { address in
        Backend(
          id: "\(pod.name.name)-\(port.name)", address: address,
          target: family == .v4 ? "\(address):\(port.target)" : "[\(address)]:\(port.target)")
      }
    }
  }

  private static let clusterRange: [IPFamily: String] = [.v4: "10.244.0.0/16", .v6: "fd00:10:244::/48"]

  /// Puts them into the node's kernel, beside rules of the kubelet and of a user.
  func install(_ layout: Layout, on node: String, of lab: Lab) throws {
    for family in IPFamily.allCases {
      let text = try layout == .nftables ? nftables(family, node, lab) : iptables(family)
      let file = "\(lab.state.directory(of: node))/kube-proxy-\(family)"
      try Files.replace(file, text)
      let program = layout == .nftables ? "nft -f" : "\(Self.command(layout, family))-restore"
      let result = try lab.exec(in: .node(node), ["/bin/sh", "-c", "/usr/sbin/\(program) \(file)"])
      try #require(result.status == 0, "\(layout) \(family): \(result.stderr)\n\(text)")
    }
  }

  /// What is in the kernel of any layout, rule by rule, without counts.
  static func inForce(on node: String, of lab: Lab) throws -> [String] {
    let programs =
      [Layout.iptables, .legacy].flatMap { layout in IPFamily.allCases.map { "\(command(layout, $0))-save" } }
    let lines = try programs.flatMap { program in
      let result = try lab.exec(in: .node(node), ["/usr/sbin/\(program)"])
      try #require(result.status == 0, "\(result.stderr)")
      return result.stdout.split(separator: "\n").map { line in
        let rule = line.prefix { $0 != "[" }
        return "\(program): \(rule)"
      }
    }
    let tables = try lab.nft(on: node, "list", "tables").stdout.split(separator: "\n").map(String.init)
    return (lines.filter { !$0.contains(": #") } + tables).filter { !$0.contains("sluice") }
  }

  private static func command(_ layout: Layout, _ family: IPFamily) -> String {
    (family == .v4 ? "ip" : "ip6") + (layout == .legacy ? "tables-legacy" : "tables-nft")
  }

  // MARK: nftables mode

  private func nftables(_ family: IPFamily, _ node: String, _ lab: Lab) throws -> String {
    let (ip, type) = family == .v4 ? ("ip", "ipv4_addr") : ("ip6", "ipv6_addr")
    let range = Self.clusterRange[family] ?? ""
    let address = try service.address(family)
    var (serviceIPs, nodePorts, chains): ([String], [String], [String]) = ([], [], [])
    for port in service.ports {
      let proto = "\(port.protocol)".lowercased()
      let id = "\(service.name.namespace)/\(service.name.name)/\(proto)/\(port.name)"
      serviceIPs.append("\(address) . \(proto) . \(port.port) : goto service-\(id)")
      if let number = port.nodePort { nodePorts.append("\(proto) . \(number) : goto external-\(id)") }
      let backends = backends(port, family)
      let choices = backends.enumerated().map { "\($0) : goto endpoint-\(id)-\($1.id)" }.joined(separator: ", ")
      chains.append(
        """
          chain service-\(id) {
            \(ip) daddr \(address) \(proto) dport \(port.port) \(ip) saddr != \(range) jump mark-for-masquerade
            numgen random mod \(backends.count) vmap { \(choices) }
          }
          chain external-\(id) {
            jump mark-for-masquerade
            goto service-\(id)
          }
        """)
      for backend in backends {
        chains.append(
          """
            chain endpoint-\(id)-\(backend.id) {
              \(ip) saddr \(backend.address) jump mark-for-masquerade
              meta l4proto \(proto) dnat to \(backend.target)
            }
          """)
      }
    }
    return """
      table \(ip) user {
        chain own { type filter hook forward priority 10; counter; }
      }
      table \(ip) kube-proxy {
        comment "rules for kube-proxy"
        set cluster-ips { type \(type); elements = { \(address) } }
        set nodeport-ips { type \(type); elements = { \(try lab.nodeAddress(node, family)) } }
        map service-ips { type \(type) . inet_proto . inet_service : verdict; }
        map service-nodeports { type inet_proto . inet_service : verdict; }
        map no-endpoint-services { type \(type) . inet_proto . inet_service : verdict; }
        map firewall-ips { type \(type) . inet_proto . inet_service : verdict; }
        chain mark-for-masquerade { meta mark set meta mark | 0x00004000; }
        chain masquerading {
          meta mark & 0x00004000 == 0x00000000 return
          meta mark set meta mark ^ 0x00004000
          masquerade fully-random
        }
      \(chains.reversed().joined(separator: "\n"))
        chain services {
          \(ip) daddr . meta l4proto . th dport vmap @service-ips
          \(ip) daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
        }
        chain service-endpoints-check { \(ip) daddr . meta l4proto . th dport vmap @no-endpoint-services; }
        chain firewall-check { \(ip) daddr . meta l4proto . th dport vmap @firewall-ips; }
        chain cluster-ips-check { \(ip) daddr @cluster-ips reject; }
        chain filter-prerouting { type filter hook prerouting priority -110; ct state new jump firewall-check; }
        chain filter-input { type filter hook input priority -110; ct state new jump service-endpoints-check; }
        chain filter-forward {
          type filter hook forward priority -110;
          ct state new jump service-endpoints-check
          ct state new jump cluster-ips-check
        }
        chain filter-output { type filter hook output priority -110; ct state new jump firewall-check; }
        chain filter-output-post-dnat { type filter hook output priority -90; ct state new jump cluster-ips-check; }
        chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
        chain nat-output { type nat hook output priority -100; jump services; }
        chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
      }
      add element \(ip) kube-proxy service-ips { \(serviceIPs.joined(separator: ", ")) }
      add element \(ip) kube-proxy service-nodeports { \(nodePorts.joined(separator: ", ")) }

      """
  }

  // MARK: iptables mode

  private func iptables(_ family: IPFamily) throws -> String {
    let host = family == .v4 ? 32 : 128
    let range = Self.clusterRange[family] ?? ""
    let address = try service.address(family)
    var (names, services, nodePorts, rules): ([String], [String], [String], [String]) = ([], [], [], [])
    for port in service.ports {
      let proto = "\(port.protocol)".lowercased()
      let id = "\(service.name.name)\(port.name)".uppercased()
      let match = "-d \(address)/\(host) -p \(proto) -m \(proto) --dport \(port.port)"
      services.append("-A KUBE-SERVICES \(match) -m comment --comment \"\(service.name)\" -j KUBE-SVC-\(id)")
      rules.append("-A KUBE-SVC-\(id) ! -s \(range) \(match) -j KUBE-MARK-MASQ")
      names.append("KUBE-SVC-\(id)")
      if let number = port.nodePort {
        nodePorts.append("-A KUBE-NODEPORTS -p \(proto) -m \(proto) --dport \(number) -j KUBE-EXT-\(id)")
        rules += ["-A KUBE-EXT-\(id) -j KUBE-MARK-MASQ", "-A KUBE-EXT-\(id) -j KUBE-SVC-\(id)"]
        names.append("KUBE-EXT-\(id)")
      }
      let backends = backends(port, family)
      for (index, backend) in backends.enumerated() {
        let chain = "KUBE-SEP-\(backend.id.uppercased())"
        names.append(chain)
        let left = backends.count - index
        let share = left > 1 ? "-m statistic --mode random --probability \(1 / Double(left)) " : ""
        rules += [
          "-A KUBE-SVC-\(id) \(share)-j \(chain)", "-A \(chain) -s \(backend.address)/\(host) -j KUBE-MARK-MASQ",
          "-A \(chain) -p \(proto) -m \(proto) -j DNAT --to-destination \(backend.target)",
        ]
      }
    }
    let new = "-m conntrack --ctstate NEW"
    return """
      *mangle
      :KUBE-PROXY-CANARY - [0:0]
      :KUBE-KUBELET-CANARY - [0:0]
      COMMIT
      *nat
      :KUBE-SERVICES - [0:0]
      :KUBE-NODEPORTS - [0:0]
      :KUBE-POSTROUTING - [0:0]
      :KUBE-MARK-MASQ - [0:0]
      :KUBE-PROXY-CANARY - [0:0]
      :USERS-OWN - [0:0]
      \(names.map { ":\($0) - [0:0]" }.joined(separator: "\n"))
      -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
      -A PREROUTING -j USERS-OWN
      -A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
      -A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
      -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
      -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
      -A KUBE-POSTROUTING -j MASQUERADE --random-fully
      -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
      \(rules.joined(separator: "\n"))
      \(services.joined(separator: "\n"))
      -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
      \(nodePorts.joined(separator: "\n"))
      -A USERS-OWN -p tcp -m tcp --dport 9 -m comment --comment "no target"
      -A USERS-OWN -p tcp -m tcp --dport 9 -j RETURN
      COMMIT
      *filter
      :KUBE-EXTERNAL-SERVICES - [0:0]
      :KUBE-FORWARD - [0:0]
      :KUBE-NODEPORTS - [0:0]
      :KUBE-SERVICES - [0:0]
      :KUBE-PROXY-FIREWALL - [0:0]
      :KUBE-PROXY-CANARY - [0:0]
      :KUBE-FIREWALL - [0:0]
      -A INPUT \(new) -j KUBE-PROXY-FIREWALL
      -A INPUT -j KUBE-NODEPORTS
      -A INPUT \(new) -j KUBE-EXTERNAL-SERVICES
      -A INPUT -j KUBE-FIREWALL
      -A FORWARD \(new) -j KUBE-PROXY-FIREWALL
      -A FORWARD -j KUBE-FORWARD
      -A FORWARD \(new) -j KUBE-SERVICES
      -A FORWARD \(new) -j KUBE-EXTERNAL-SERVICES
      -A OUTPUT \(new) -j KUBE-PROXY-FIREWALL
      -A OUTPUT \(new) -j KUBE-SERVICES
      -A OUTPUT -j KUBE-FIREWALL
      -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
      -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
      -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
      -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
      COMMIT

      """
  }
}

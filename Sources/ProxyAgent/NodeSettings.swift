import Glibc
import LocalAPI
import Netlink

/// Kernel settings the packet path needs. What was there before is kept on disk and put back by `--cleanup`.
struct NodeSettings {
  /// Setting and value, with the reason for whoever asks why it changed.
  static let wanted: [(path: [String], value: String, reason: String)] = [
    (["net", "ipv4", "ip_forward"], "1", "pods are routed"),
    (["net", "ipv6", "conf", "all", "forwarding"], "1", "pods are routed"),
    // An out-of-window packet must stay with its flow: untranslated it would be answered with a reset
    // (kubernetes/kubernetes#74839).
    (["net", "netfilter", "nf_conntrack_tcp_be_liberal"], "1", "translated flows survive out-of-window packets"),
    (["net", "netfilter", "nf_conntrack_tcp_timeout_established"], "86400", "as kube-proxy"),
    (["net", "netfilter", "nf_conntrack_tcp_timeout_close_wait"], "3600", "as kube-proxy"),
  ]

  let savedPath: String

  /// Applies all settings; returns what could not be set, which is never fatal.
  func apply() -> [String] {
    var warnings: [String] = []
    var saved: JSONObject
    do {
      saved = try readSaved()
    } catch {
      // Setting on would write today's values over what was there before Sluice.
      return ["\(savedPath) cannot be read, so no setting is changed: \(error)"]
    }
    for (path, value, _) in Self.wanted {
      do {
        let before = try Sysctl.read(path)
        guard before != value else { continue }
        if saved[Self.name(path)] == nil {
          saved[Self.name(path)] = .string(before)
          for other in Self.changedAlong(with: path) {
            if let value = try? Sysctl.read(other) { saved[Self.name(other)] = .string(value) }
          }
          try LocalFile.replace(savedPath, with: Array(JSONValue.object(saved).serialized().utf8))
        }
        try Sysctl.write(path, value: value)
      } catch {
        warnings.append("\(error)")
      }
    }
    return warnings
  }

  /// Puts back what `apply` changed.
  func restore() throws {
    let saved = try readSaved()
    let own = Self.wanted.map { Self.name($0.path) }
    // Ours first: writing them changes the others once more.
    for name in own + saved.map(\.key).filter({ !own.contains($0) }) {
      guard let value = saved[name]?.stringValue else { continue }
      do throws(SystemError) {
        try Sysctl.write(name.split(separator: "/").map(String.init), value: value)
      } catch {
        // A device that has gone took its settings along.
        if error.errno != ENOENT || own.contains(name) { throw error }
      }
    }
    try LocalFile.remove(savedPath)
  }

  private static func name(_ path: [String]) -> String { path.joined(separator: "/") }

  /// What the kernel changes by itself when forwarding is switched (inet_forward_change, addrconf_forward_change), and
  /// does not put back when it is switched again.
  private static func changedAlong(with path: [String]) -> [[String]] {
    let family = path[1]
    guard path == ["net", "ipv4", "ip_forward"] || path == ["net", "ipv6", "conf", "all", "forwarding"] else {
      return []
    }
    let devices = ((try? LocalFile.names(in: "/proc/sys/net/\(family)/conf")) ?? []).filter { $0 != "all" }
    let redirects = family == "ipv4" ? [["net", "ipv4", "conf", "all", "accept_redirects"]] : []
    return redirects + devices.map { ["net", family, "conf", $0, "forwarding"] }
  }

  private func readSaved() throws -> JSONObject {
    guard let bytes = try LocalFile.read(savedPath) else { return JSONObject() }
    return try JSONValue(parsing: bytes).objectValue ?? JSONObject()
  }
}

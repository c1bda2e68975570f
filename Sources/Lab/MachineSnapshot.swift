import Glibc
import Netlink

/// What a lab could have left behind in the machine's own namespaces, as text to compare: links, addresses, routes,
/// rules, permanent neighbours, network settings, nftables, mounts, cgroups, and the folders labs write to.
public struct MachineSnapshot: Sendable, Equatable {
  /// Sorted lines by section.
  public var sections: [String: [String]] = [:]

  /// - Parameter lab: other labs come and go beside this one, so their folders and cgroups do not count; nil: all count.
  public static func take(lab: String? = nil) throws -> MachineSnapshot {
    var snapshot = MachineSnapshot()
    let route = try RouteSocket()
    snapshot["links"] = try route.links().map { "\($0.index) \($0.name) \($0.kind ?? "") \($0.flags) mtu \($0.mtu)" }
    snapshot["addresses"] = try route.addresses().map { "\($0.interfaceIndex) \($0.address)" }
    snapshot["routes"] = try route.routes().map { "table \($0.table) \($0)" }
    snapshot["rules"] = try route.rules().map { "\($0)" }
    snapshot["neighbours"] = try route.neighbours().filter(\.isPermanent).map { "\($0.interfaceIndex) \($0.address)" }
    snapshot["settings"] = settings(below: "/proc/sys/net")
    snapshot["mounts"] = (Files.text("/proc/self/mountinfo") ?? "").split(separator: "\n").map(String.init)
    let isOthers: (String) -> Bool = { path in
      guard let lab, let start = path.range(of: "/sluice-lab") else { return false }
      let rest = path[start.upperBound...]
      return rest.isEmpty || !(rest == "/\(lab)" || rest.hasPrefix("/\(lab)/"))
    }
    snapshot["cgroups"] = folders(below: try ControlGroup.mountPoint()).filter { !isOthers($0) }
    let written = ["/run", "/run/sluice-lab", "/run/netns", "/run/sluice", "/var/lib", "/etc/cni", "/opt"]
    let entries = written.flatMap { folder in Files.names(in: folder).map { "\(folder)/\($0)" } }
    snapshot["folders"] = entries.filter { !isOthers($0) }
    if let nft = ["/usr/sbin/nft", "/sbin/nft"].first(where: { Files.exists($0) }) {
      let result = try ChildProcess.run([nft, "list", "ruleset"], name: "nft", in: nil, milliseconds: 10_000)
      snapshot["nftables"] = result.stdout.split(separator: "\n").map(String.init)
    }
    return snapshot
  }

  private subscript(section: String) -> [String] {
    get { sections[section] ?? [] }
    set { sections[section] = newValue.sorted() }
  }

  /// What came (`+`) and went (`-`) until `later`; empty when nothing changed.
  public func differences(to later: MachineSnapshot) -> [String] {
    Set(sections.keys).union(later.sections.keys).sorted().flatMap { name in
      let before = sections[name] ?? []
      let after = later.sections[name] ?? []
      let (old, new) = (Set(before), Set(after))
      let came = after.filter { !old.contains($0) && !(name == "settings" && Self.isOfLoadedModule($0, before)) }
      return before.filter { !new.contains($0) }.map { "- \(name): \($0)" } + came.map { "+ \(name): \($0)" }
    }
  }

  /// Netfilter's settings come with its modules, which the kernel loads for whoever needs them first, and keeps.
  private static func isOfLoadedModule(_ setting: String, _ before: [String]) -> Bool {
    guard setting.hasPrefix("/proc/sys/net/netfilter/") || setting.hasPrefix("/proc/sys/net/nf_conntrack_") else {
      return false
    }
    let path = setting.prefix { $0 != " " }
    return !before.contains { $0.hasPrefix("\(path) ") }
  }

  /// Settings that can be written; those that only count something change by themselves.
  private static func settings(below folder: String) -> [String] {
    Files.names(in: folder).flatMap { name -> [String] in
      let path = "\(folder)/\(name)"
      var info = stat()
      guard lstat(path, &info) == 0 else { return [] }
      if info.st_mode & S_IFMT == S_IFDIR { return settings(below: path) }
      guard info.st_mode & 0o600 == 0o600, let value = Files.text(path) else { return [] }
      return ["\(path) = \(value.split(separator: "\n").joined(separator: " "))"]
    }
  }

  private static func folders(below folder: String) -> [String] {
    Files.names(in: folder).flatMap { name -> [String] in
      let path = "\(folder)/\(name)"
      return Files.isDirectory(path) ? [path] + folders(below: path) : []
    }
  }
}

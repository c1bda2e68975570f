import Glibc
import NFTables
import Netlink
import NetworkTypes

/// Rules of iptables as it was before nf_tables ("legacy"), in the network namespace of the calling thread: kube-proxy's taken
/// out, everybody else's as they are.
///
/// A table is one block of bytes that is read and replaced as a whole (include/uapi/linux/netfilter_ipv4/ip_tables.h and its
/// like for IPv6; struct sizes are those of 64-bit machines).
struct LegacyTables {
  let family: IPFamily

  struct Failure: Error, CustomStringConvertible {
    var description: String
  }

  // `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`, `IPT_SO_SET_REPLACE`; IPv6 has the same numbers.
  private static let getInfo: CInt = 64
  private static let getEntries: CInt = 65
  private static let replace: CInt = 64
  private static let nameLength = 32
  private static let hooks = 5
  private static let headerLength = 96
  private static let attempts = 5

  private var isIPv4: Bool { family == .v4 }
  private var command: String { isIPv4 ? "iptables" : "ip6tables" }

  /// Where kube-proxy's chains begin in any table, as `chain iptables-legacy nat KUBE-SERVICES`.
  func kubeProxyChains() throws -> [String] {
    try tables().flatMap { table in
      try read(table).chains.values.filter(KubeProxyChain.isRoot).sorted().map {
        "chain \(command)-legacy \(table) \($0)"
      }
    }
  }

  /// Takes kube-proxy's chains, and rules that lead to them, out of every table. Packet counters begin anew.
  func removeKubeProxy() throws {
    let names = try tables()
    guard !names.isEmpty else { return }
    let lock = try Self.lock()
    defer { if lock >= 0 { close(lock) } }
    for table in names {
      // Who changes tables without the lock is noticed by the kernel where the number of rules differs.
      for attempt in 1...Self.attempts {
        let blob = try read(table)
        guard blob.chains.values.contains(where: KubeProxyChain.isOne) else { break }
        let code = try write(blob.without(KubeProxyChain.isOne), replacing: blob)
        if code == 0 { break }
        guard code == EAGAIN, attempt < Self.attempts else {
          throw Failure(
            description: "\(command)-legacy \(table): cannot be replaced: \(String(cString: strerror(code)))")
        }
      }
    }
  }

  /// iptables' own: whoever holds it reads a table and writes it with nobody in between.
  ///
  /// - Returns: what to close; negative where there is no such file and none can be made.
  private static func lock() throws -> CInt {
    let file = open("/run/xtables.lock", O_RDONLY | O_CREAT | O_CLOEXEC, 0o600)
    guard file >= 0 else { return file }
    for _ in 0..<100 {
      if flock(file, LOCK_EX | LOCK_NB) == 0 { return file }
      usleep(10_000)
    }
    close(file)
    throw Failure(description: "/run/xtables.lock is held by somebody else")
  }

  // MARK: The kernel

  /// Tables that exist: asking for one that does not would make it.
  private func tables() throws -> [String] {
    let path = "/proc/thread-self/net/\(isIPv4 ? "ip" : "ip6")_tables_names"
    guard let file = fopen(path, "re") else { return [] }
    defer { fclose(file) }
    var names: [String] = []
    var line: UnsafeMutablePointer<CChar>?
    var room = 0
    defer { free(line) }
    while getline(&line, &room, file) > 0, let line {
      names.append(String(String(cString: line).prefix { $0 != "\n" }))
    }
    return names
  }

  private func socket() throws -> FileDescriptor {
    let number = Glibc.socket(isIPv4 ? AF_INET : AF_INET6, CInt(SOCK_DGRAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    guard number >= 0 else { throw failure("socket") }
    return FileDescriptor(owning: number)
  }

  private var level: CInt { CInt(isIPv4 ? IPPROTO_IP : Int(IPPROTO_IPV6)) }

  private func failure(_ what: String) -> Failure {
    Failure(description: "\(command)-legacy: \(what): \(String(cString: strerror(errno)))")
  }

  private func read(_ table: String) throws -> Blob {
    let socket = try socket()
    for attempt in 1... {
      if let blob = try read(table, socket) { return blob }
      guard attempt < Self.attempts else { break }
    }
    throw Failure(description: "\(command)-legacy \(table): keeps changing while it is read")
  }

  /// nil: it changed between the question for its size and the answer.
  private func read(_ table: String, _ socket: borrowing FileDescriptor) throws -> Blob? {
    let name = Array(table.utf8.prefix(Self.nameLength - 1))
    // struct ipt_getinfo: name, valid_hooks, hook_entry, underflow, num_entries, size.
    var info = name + [UInt8](repeating: 0, count: 84 - name.count)
    var length = socklen_t(info.count)
    guard getsockopt(socket.number, level, Self.getInfo, &info, &length) == 0 else { throw failure(table) }
    let size = info.word(80)
    // struct ipt_get_entries: name, size, padding, entries.
    var answer = [UInt8](repeating: 0, count: 40 + size)
    answer.replaceSubrange(0..<84, with: info.prefix(84).prefix(answer.count))
    answer.replaceSubrange(0..<40, with: name + [UInt8](repeating: 0, count: 40 - name.count))
    answer.setWord(32, size)
    length = socklen_t(answer.count)
    guard getsockopt(socket.number, level, Self.getEntries, &answer, &length) == 0 else {
      if errno == EAGAIN { return nil }
      throw failure(table)
    }
    return try Blob(
      table: table, isIPv4: isIPv4, validHooks: info.word(32),
      hookEntries: (0..<Self.hooks).map { info.word(36 + 4 * $0) },
      underflows: (0..<Self.hooks).map { info.word(56 + 4 * $0) }, bytes: Array(answer[40...]))
  }

  /// - Returns: errno, 0 where it is done.
  private func write(_ new: Blob, replacing old: Blob) throws -> CInt {
    let socket = try socket()
    let name = Array(new.table.utf8)
    // struct ipt_replace: name, valid_hooks, num_entries, size, hook_entry, underflow, num_counters, counters, entries.
    var request = name + [UInt8](repeating: 0, count: Self.headerLength - name.count)
    let bytes = new.entries.flatMap(\.bytes)
    request.setWord(32, new.validHooks)
    request.setWord(36, new.entries.count)
    request.setWord(40, bytes.count)
    for hook in 0..<Self.hooks {
      request.setWord(44 + 4 * hook, new.hookEntries[hook])
      request.setWord(64 + 4 * hook, new.underflows[hook])
    }
    request.setWord(84, old.entries.count)
    request += bytes
    var counters = [UInt64](repeating: 0, count: 2 * old.entries.count)
    return counters.withUnsafeMutableBytes { counters in
      let address = UInt64(UInt(bitPattern: counters.baseAddress))
      withUnsafeBytes(of: address) { request.replaceSubrange(88..<96, with: $0) }
      return setsockopt(socket.number, level, Self.replace, request, socklen_t(request.count)) == 0 ? 0 : errno
    }
  }

  // MARK: A table

  struct Entry {
    var bytes: [UInt8]
    /// Where it stands in its table.
    var offset: Int
    var end: Int { offset + bytes.count }
  }

  /// One table, taken apart.
  struct Blob {
    var table: String
    var isIPv4: Bool
    var validHooks: Int
    var hookEntries: [Int]
    var underflows: [Int]
    var entries: [Entry] = []
    /// Names by where a jump to them leads.
    var chains: [Int: String] = [:]

    init(
      table: String, isIPv4: Bool, validHooks: Int, hookEntries: [Int], underflows: [Int], bytes: [UInt8]
    ) throws {
      (self.table, self.isIPv4, self.validHooks) = (table, isIPv4, validHooks)
      (self.hookEntries, self.underflows) = (hookEntries, underflows)
      var offset = 0
      while offset < bytes.count {
        let length = bytes.count - offset >= minimumLength ? bytes.halfWord(offset + targetOffsetPlace + 2) : 0
        guard length >= minimumLength, length <= bytes.count - offset else {
          throw Failure(description: "table \(table): a rule at byte \(offset) is cut off")
        }
        let entry = Entry(bytes: Array(bytes[offset..<offset + length]), offset: offset)
        entries.append(entry)
        offset = entry.end
        if case .head(let name) = try target(of: entry), offset < bytes.count { chains[offset] = name }
      }
    }

    private enum Target {
      /// Of a chain, or the table's end: its name.
      case head(String)
      /// Where the packet goes on; negative: a verdict.
      case standard(Int)
      case other
    }

    /// `target_offset` in struct ipt_entry and ip6t_entry; `next_offset` follows.
    private var targetOffsetPlace: Int { isIPv4 ? 88 : 140 }
    private var minimumLength: Int { (isIPv4 ? 112 : 168) + 32 }

    private func target(of entry: Entry) throws -> Target {
      let place = entry.bytes.halfWord(targetOffsetPlace)
      // struct xt_entry_target: size, name, revision, data.
      guard place + 36 <= entry.bytes.count else {
        throw Failure(description: "table \(table): the rule at byte \(entry.offset) has no target")
      }
      let name = entry.bytes.text(place + 2, limit: 29)
      switch name {
      case "ERROR": return .head(entry.bytes.text(place + 32, limit: 30))
      case "": return .standard(entry.bytes.word(place + 32))
      default: return .other
      }
    }

    /// The same without some chains, and without rules that lead to them.
    func without(_ isGone: (String) -> Bool) throws -> Blob {
      var result = self
      result.entries = []
      var places: [Int: Int] = [:]
      var (offset, isInside) = (0, false)
      for entry in entries {
        let target = try target(of: entry)
        if case .head(let name) = target { isInside = isGone(name) }
        // What led to one that is gone leads to what follows it.
        places[entry.offset] = offset
        if isInside { continue }
        if case .standard(let place) = target, place >= 0, let chain = chains[place], place != entry.end, isGone(chain)
        {
          continue
        }
        result.entries.append(Entry(bytes: entry.bytes, offset: offset))
        offset += entry.bytes.count
      }
      for index in result.entries.indices {
        guard case .standard(let place) = try target(of: result.entries[index]), place >= 0, let moved = places[place]
        else { continue }
        let at = result.entries[index].bytes.halfWord(targetOffsetPlace) + 32
        result.entries[index].bytes.setWord(at, moved)
      }
      result.hookEntries = hookEntries.map { places[$0] ?? $0 }
      result.underflows = underflows.map { places[$0] ?? $0 }
      return result
    }
  }
}

extension [UInt8] {
  fileprivate func word(_ offset: Int) -> Int {
    withUnsafeBytes { Int($0.loadUnaligned(fromByteOffset: offset, as: Int32.self)) }
  }
  fileprivate func halfWord(_ offset: Int) -> Int {
    withUnsafeBytes { Int($0.loadUnaligned(fromByteOffset: offset, as: UInt16.self)) }
  }
  fileprivate func text(_ offset: Int, limit: Int) -> String {
    String(decoding: self[offset..<Swift.min(offset + limit, count)].prefix { $0 != 0 }, as: UTF8.self)
  }
  fileprivate mutating func setWord(_ offset: Int, _ value: Int) {
    Swift.withUnsafeBytes(of: Int32(truncatingIfNeeded: value)) { replaceSubrange(offset..<offset + 4, with: $0) }
  }
}

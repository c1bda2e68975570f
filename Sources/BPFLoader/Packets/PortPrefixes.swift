import DataplaneModel

/// A port set as the kernel looks it up: single ports by hash, everything else by the longest prefix of protocol and port.
extension PortSet {
  struct Prefix: Hashable {
    var first: PortKey
    /// How many of 24 bits count.
    var length: UInt32
    var clause: Clause
  }

  var singlePorts: [Entry] { entries.filter { $0.ports.lowerBound == $0.ports.upperBound } }

  /// What no single port matches. One clause fills whatever the others leave, in one element: a denying one where there is
  /// any, so that a lost element opens nothing.
  var prefixes: [Prefix] {
    let ranges = entries.filter { $0.ports.lowerBound != $0.ports.upperBound }
    var sizes: [Clause: Int] = [:]
    for range in ranges {
      sizes[range.clause, default: 0] += Int(range.ports.upperBound.rawValue - range.ports.lowerBound.rawValue)
    }
    let candidates = sizes.keys.contains { !$0.isAllowed } ? sizes.filter { !$0.key.isAllowed } : sizes
    let rest = candidates.max { ($0.value, $1.key) < ($1.value, $0.key) }?.key
    var prefixes: [Prefix] = []
    if let rest { prefixes.append(Prefix(first: .first, length: 0, clause: rest)) }
    for range in ranges where range.clause != rest {
      var next = range.ports.lowerBound.rawValue
      let last = range.ports.upperBound.rawValue
      while next <= last {
        var bits = min(next == 0 ? 24 : next.trailingZeroBitCount, 24)
        while next + (1 << bits) - 1 > last { bits -= 1 }
        guard let first = PortKey(rawValue: next) else { break }
        prefixes.append(Prefix(first: first, length: UInt32(24 - bits), clause: range.clause))
        next += 1 << bits
      }
    }
    return prefixes
  }
}

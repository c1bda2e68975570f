import DataplaneModel
import Netlink

/// What it takes to make a map have other elements: first what is new or different, later what goes.
extension BPFMap {
  func add(_ old: [Key: Value], _ new: [Key: Value], _ report: inout ApplyReport) throws(SystemError) {
    let elements = new.filter { old[$0.key] != $0.value }.map { (key: $0.key, value: $0.value) }
    guard !elements.isEmpty else { return }
    report.messages += 1
    try set(elements)
  }

  func remove(_ old: [Key: Value], _ new: [Key: Value], _ report: inout ApplyReport) throws(SystemError) {
    let keys = old.keys.filter { new[$0] == nil }
    report.messages += keys.count
    try remove(keys)
  }
}

extension [Drift] {
  /// The first thousand: where everything is missing nobody reads a list of it.
  mutating func compare<Key: MapLayout, Value: MapLayout>(
    _ map: String, _ found: [Key: Value], _ wanted: [Key: Value]
  ) {
    for (key, value) in wanted {
      guard count < 1000 else { return }
      if let other = found[key] {
        if other != value { append(Drift(.different, "map \(map): \(key)")) }
      } else {
        append(Drift(.missing, "map \(map): \(key)"))
      }
    }
    for key in found.keys where wanted[key] == nil {
      guard count < 1000 else { return }
      append(Drift(.extra, "map \(map): \(key)"))
    }
  }
}

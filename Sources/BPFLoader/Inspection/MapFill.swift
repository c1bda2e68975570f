import Netlink

/// How full a pinned map is.
public struct MapFill: Sendable, Hashable {
  public var map: String
  public var entries: Int
  /// Most entries that it can have.
  public var maximum: Int
  /// What of the entries is in use. In a cache the others are kept until somebody needs their place.
  public var live: Int
  /// Full means that something is refused; a cache forgets its oldest instead, which does harm only to what is live.
  public var percent: Int { maximum == 0 ? 0 : Int((Double(live) * 100 / Double(maximum)).rounded(.down)) }
  /// Flows by state, where the map has flows.
  public var flows: [FlowState: Int] = [:]

  public static let highPercent = 90

  public init(map: String, entries: Int, maximum: Int, live: Int) {
    (self.map, self.entries, self.maximum, self.live) = (map, entries, maximum, live)
  }

  /// nil for a map that cannot fill. Of caches other than of flows nobody can say what is in use: none is taken to be.
  static func of(_ map: PinnedMap) throws(SystemError) -> MapFill? {
    guard map.kind.canFill else { return nil }
    var fill = MapFill(map: map.name, entries: 0, maximum: map.maximum, live: 0)
    guard map.kind.forgets else {
      fill.entries = try map.count()
      fill.live = fill.entries
      return fill
    }
    guard map.hasLayout(TupleLayout.self, FlowLayout.self) else {
      fill.entries = try map.count()
      return fill
    }
    let now = MonotonicClock.now
    try map.forEach(TupleLayout.self, FlowLayout.self) { key, flow in
      fill.entries += 1
      guard !flow.isOver(proto: key.proto, at: now) else { return }
      fill.live += 1
      if let state = FlowState(rawValue: flow.state) { fill.flows[state, default: 0] += 1 }
    }
    return fill
  }

  /// Of every map in the folder. Costs what there is: about 10 ns for each element that there could be, more for each that
  /// there is.
  public static func all(in folder: PinFolder) throws(SystemError) -> [MapFill] {
    var fills: [MapFill] = []
    for map in try PinnedMap.all(in: folder) { if let fill = try of(map) { fills.append(fill) } }
    return fills
  }
}

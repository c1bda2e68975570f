import Glibc
import Netlink
import NetworkTypes

/// A flow that the packet programs track, as who began it sees it.
public struct TrackedFlow: Sendable, Hashable {
  public struct End: Sendable, Hashable, CustomStringConvertible {
    public var address: IPAddress
    /// 0 where the protocol has none; of an echo its identifier stands at who asks.
    public var port: UInt16
    public var description: String { SocketAddressText.of(address, port) }

    public init(_ address: IPAddress, _ port: UInt16) { (self.address, self.port) = (address, port) }
    init(_ layout: BackendLayout) {
      self.init(layout.address.address ?? .unspecified(.v6), UInt16(bigEndian: layout.port))
    }
  }
  public var proto: UInt8
  public var source: End
  /// As it was asked for: a Service's where the flow was balanced.
  public var destination: End
  /// The backend that the flow was balanced to.
  public var backend: End?
  /// What the flow left this node with.
  public var masqueradedAs: End?
  public var state: FlowState
  /// A process of this node began it.
  public var isHosts: Bool
  /// That it was last judged by.
  public var revision: UInt32
  /// Since a packet was last seen; the programs write that once a second.
  public var silentSeconds: UInt64
  /// Until it is over; 0: it is.
  public var secondsLeft: UInt64
}

/// The flows in a folder of pins.
public struct TrackedFlows: Sendable {
  private let caches: [PinnedMap]
  private let translations: PinnedMap?

  /// - Throws: where there are no packet programs' maps.
  public init(pins: PinFolder) throws(SystemError) {
    let maps = try PinnedMap.all(in: pins)
    caches = maps.filter { ["flows", "attempts"].contains($0.name) && $0.hasLayout(TupleLayout.self, FlowLayout.self) }
    translations = maps.first {
      $0.name == "translations" && $0.hasLayout(TupleLayout.self, TranslationLayout.self)
    }
    if caches.isEmpty {
      throw SystemError(
        operation: "find flows in", object: pins.path, errno: ENOENT,
        detail: "the ebpf engine does not run here, or is of another version")
    }
  }

  /// Hands out each flow; those that are over only where they are asked for. Some thousand are in memory at a time.
  public func forEach(includingOver: Bool = false, _ body: (TrackedFlow) -> Void) throws(SystemError) {
    let now = MonotonicClock.now
    for cache in caches {
      var failure: SystemError?
      try cache.forEach(TupleLayout.self, FlowLayout.self) { key, value in
        guard failure == nil, includingOver || !value.isOver(proto: key.proto, at: now) else { return }
        do throws(SystemError) { body(try flow(key, value)) } catch { failure = error }
      }
      if let failure { throw failure }
    }
  }

  /// Those that are not over.
  public func count() throws(SystemError) -> Int {
    let now = MonotonicClock.now
    var count = 0
    for cache in caches {
      try cache.forEach(TupleLayout.self, FlowLayout.self) { if !$1.isOver(proto: $0.proto, at: now) { count += 1 } }
    }
    return count
  }

  private func flow(_ key: TupleLayout, _ value: FlowLayout) throws(SystemError) -> TrackedFlow {
    let original = value.flags & FlowLayout.fromSecond != 0 ? key.reversed : key
    let state = FlowState(rawValue: value.state) ?? .closing
    let silent = MonotonicClock.seconds(since: value.seen)
    let lifetime = FlowLifetime.of(proto: key.proto, state)
    var flow = TrackedFlow(
      proto: key.proto, source: .init(original.first), destination: .init(original.second), state: state,
      isHosts: value.flags & FlowLayout.fromHost != 0, revision: value.revision, silentSeconds: silent,
      secondsLeft: lifetime > silent ? lifetime - silent : 0)
    // Answers of a balanced flow get the Service's address as their source.
    if value.flags & FlowLayout.balanced != 0 {
      flow.backend = flow.destination
      if let answers = try translation(original.reversed) {
        // The client may know it by another port, too.
        (flow.destination, flow.source) = (.init(answers.to.first), .init(answers.to.second))
      }
    }
    if value.flags & FlowLayout.masqueraded != 0, let leaving = try translation(original) {
      flow.masqueradedAs = .init(leaving.to.first)
    }
    return flow
  }

  /// What becomes of a source.
  private func translation(_ tuple: TupleLayout) throws(SystemError) -> TranslationLayout? {
    try translations?.value(of: tuple.at(TupleLayout.sourceStep), as: TranslationLayout.self)
  }
}

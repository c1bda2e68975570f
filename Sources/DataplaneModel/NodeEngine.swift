import NetworkTypes

/// What the kernel's own maps decide about one direction of a packet.
public struct KernelDecision: Sendable, Hashable {
  /// In the tables' terms, from the numbers that the look-ups found.
  public var decision: PolicyDecision
  /// What the last look-up's verdict does with the packet.
  public var isAllowed: Bool

  public init(_ decision: PolicyDecision, isAllowed: Bool) {
    self.decision = decision
    self.isAllowed = isAllowed
  }

  /// The same clause by the same way, and the verdict that the clause is for.
  public func agrees(with expected: PolicyDecision) -> Bool {
    decision == expected && isAllowed == expected.isAllowed
  }
}

/// What an agent asks of the engine that has the packet path, beyond the tables.
public protocol NodeEngine: DataplaneEngine {
  /// The largest service number in the kernel, 0 where there is none.
  func largestServiceNumber() throws(Failure) -> UInt32
  /// The slots of every backend set in the kernel: the order a restarted agent goes on with.
  func slotsInForce() throws(Failure) -> [BackendSetID: [SocketAddress]]
  /// The identities in the kernel: a restarted agent goes on with their numbers. `largestSerial` is that of any number in
  /// use, 0 where there is none: pairs may still wait for their removal.
  func identitiesInForce() throws(Failure) -> (
    addresses: [IPAddress: IdentityID], atoms: [AddressRange: IdentityID], largestSerial: UInt32
  )
  /// True while removals wait; `finishRemovals` ends that.
  var hasDeferredRemovals: Bool { get }
  /// Removes what no packet can want any more: call it some time after the change that left it.
  mutating func finishRemovals() throws(Failure) -> ApplyReport
  /// Whether somebody else has written to what the engine owns since its last change. Cheap.
  func wasChangedByOthers() throws(Failure) -> Bool
  /// Transactions of this process in the same part of the kernel that are none of this engine's.
  mutating func noteOwnTransactions(_ count: Int)
  /// Whether something is missing without which packets pass that should not. Cheap.
  mutating func hasLostStructure(_ tables: Tables) throws(Failure) -> Bool
  /// What was sent and not yet reported: after calls whose answer has no room for it.
  func takeReport() -> ApplyReport
  /// Asks the kernel's own maps what happens to a flow's first packet. A direction is nil where no local pod is on that
  /// side, or where no look-up decides (this node's own packets to a pod).
  func judgeInKernel(
    _ packet: PolicyPacket, tables: Tables
  ) throws(Failure) -> (egress: KernelDecision?, ingress: KernelDecision?)
  /// Reads every counter.
  mutating func counters() throws(Failure) -> PolicyCounters
  /// Whether a difference is in what policy is made of.
  func isAboutPolicy(_ drift: Drift) -> Bool
}

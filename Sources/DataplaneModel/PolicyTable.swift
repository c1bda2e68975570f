import NetworkTypes

/// From the pod's side: what comes to it, what goes out from it.
public enum PolicyDirection: UInt8, Sendable, Hashable, CaseIterable, CustomStringConvertible {
  case ingress
  case egress
  public var description: String { self == .ingress ? "ingress" : "egress" }
}

/// A local pod's side of policy, one direction: which policies select it and what their named ports mean there. Pods with
/// the same share it. The number follows from the policies' content, so a changed policy makes another subject.
public struct SubjectID: Sendable, Hashable, Comparable, CustomStringConvertible {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// No policy selects the pod in this direction: everything is allowed.
  public static let unrestricted = SubjectID(rawValue: 0)

  public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
  public var description: String { self == .unrestricted ? "unrestricted" : "\(rawValue)" }
}

/// A local pod's two subjects.
public struct Subjects: Sendable, Hashable {
  public var ingress: SubjectID
  public var egress: SubjectID

  public init(ingress: SubjectID = .unrestricted, egress: SubjectID = .unrestricted) {
    self.ingress = ingress
    self.egress = egress
  }
  public static let unrestricted = Subjects()
  public subscript(direction: PolicyDirection) -> SubjectID { direction == .ingress ? ingress : egress }
}

/// What a port set says about a packet: the verdict, and which of the attribution's rules it is by.
public struct Clause: Sendable, Hashable, Comparable, CustomStringConvertible {
  public enum Kind: UInt8, Sendable, Hashable, CaseIterable {
    /// By the attribution's rule `index`.
    case allow
    /// No policy that is enforced isolates the pod.
    case notIsolated
    /// Isolated, and no rule matches.
    case defaultDeny
    /// As `notIsolated`; were the audit policies enforced, it would be denied.
    case auditDeny
    /// More (subject, identity) pairs than the agent may keep: closed until there are fewer.
    case overLimit
  }
  public var kind: Kind
  public var index: UInt16

  public init(_ kind: Kind, _ index: UInt16 = 0) {
    self.kind = kind
    self.index = index
  }

  public init?(rawValue: UInt32) {
    guard let kind = Kind(rawValue: UInt8(truncatingIfNeeded: rawValue >> 16)), rawValue >> 24 == 0 else { return nil }
    self.init(kind, UInt16(truncatingIfNeeded: rawValue))
  }
  public var rawValue: UInt32 { UInt32(kind.rawValue) << 16 | UInt32(index) }

  public var isAllowed: Bool {
    switch kind {
    case .allow, .notIsolated, .auditDeny: true
    case .defaultDeny, .overLimit: false
    }
  }

  public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
  public var description: String { kind == .allow ? "allow \(index)" : "\(kind)" }
}

/// (Protocol, destination port) as one number: the key space of port sets, 0...0xff_ffff.
public struct PortKey: Sendable, Hashable, Comparable, CustomStringConvertible {
  public let rawValue: UInt32

  public init(proto: UInt8, port: UInt16) { rawValue = UInt32(proto) << 16 | UInt32(port) }
  public init(_ proto: L4Protocol, _ port: Port) { self.init(proto: proto.rawValue, port: port.number) }
  /// nil above `last`.
  public init?(rawValue: UInt32) {
    guard rawValue <= 0xff_ffff else { return nil }
    self.rawValue = rawValue
  }

  public static let first = PortKey(proto: 0, port: 0)
  public static let last = PortKey(proto: .max, port: .max)
  public var proto: UInt8 { UInt8(rawValue >> 16) }
  public var port: UInt16 { UInt16(truncatingIfNeeded: rawValue) }

  public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
  public var description: String { "\(L4Protocol(rawValue: proto)?.description ?? "\(proto)")/\(port)" }
}

/// Number of a port set, derived from its content.
public struct PortSetID: Sendable, Hashable, Comparable, CustomStringConvertible {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
  public var description: String { "\(rawValue)" }
}

/// Every protocol and port -> clause. Total and immutable.
public struct PortSet: Sendable, Hashable {
  public struct Entry: Sendable, Hashable {
    public var ports: ClosedRange<PortKey>
    public var clause: Clause
    public init(_ ports: ClosedRange<PortKey>, _ clause: Clause) {
      self.ports = ports
      self.clause = clause
    }
  }
  /// Sorted, disjoint, from `PortKey.first` to `PortKey.last` without gaps; neighbours differ.
  public let entries: [Entry]

  /// - Parameter entries: sorted, disjoint and total.
  public init(_ entries: [Entry]) {
    var joined: [Entry] = []
    for entry in entries {
      if let last = joined.last, last.clause == entry.clause {
        joined[joined.count - 1].ports = last.ports.lowerBound...entry.ports.upperBound
      } else {
        joined.append(entry)
      }
    }
    self.entries = joined
  }

  public func clause(for key: PortKey) -> Clause? {
    var (low, high) = (0, entries.count)
    while low < high {
      let middle = (low + high) / 2
      if entries[middle].ports.upperBound < key { low = middle + 1 } else { high = middle }
    }
    return low < entries.count && entries[low].ports.contains(key) ? entries[low].clause : nil
  }

  public func add(to hash: inout ContentHash) {
    for entry in entries {
      hash.add(entry.ports.lowerBound.rawValue)
      hash.add(entry.clause.rawValue)
    }
  }
}

/// An object that rules come from, by name.
public struct PolicyReference: Sendable, Hashable, Comparable, CustomStringConvertible {
  public var namespace: String
  public var name: String

  public init(namespace: String, name: String) {
    self.namespace = namespace
    self.name = name
  }
  public static func < (left: Self, right: Self) -> Bool {
    (left.namespace, left.name) < (right.namespace, right.name)
  }
  /// `shop/api-deny-from-frontend`.
  public var description: String { "\(namespace)/\(name)" }
}

public struct RuleReference: Sendable, Hashable, Comparable, CustomStringConvertible {
  public var policy: PolicyReference
  /// Position in the policy's list of that direction.
  public var index: Int

  public init(policy: PolicyReference, index: Int) {
    self.policy = policy
    self.index = index
  }
  public static func < (left: Self, right: Self) -> Bool { (left.policy, left.index) < (right.policy, right.index) }
  public var description: String { "\(policy) rule \(index)" }
}

/// Number of an attribution, derived from its content. The lowest bit is the direction: who reads counters from the kernel
/// knows it without tables.
public struct AttributionID: Sendable, Hashable, Comparable, CustomStringConvertible {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  public static func lowestBit(of direction: PolicyDirection) -> UInt32 { direction == .egress ? 1 : 0 }
  public var direction: PolicyDirection { rawValue & 1 == 1 ? .egress : .ingress }
  public static func < (left: Self, right: Self) -> Bool { left.rawValue < right.rawValue }
  public var description: String { "\(rawValue)" }
}

/// Whose verdicts those of a pair are.
public struct Attribution: Sendable, Hashable {
  public var direction: PolicyDirection
  /// What the clauses' indexes mean: the rules that match the pair's peer.
  public var rules: [RuleReference]
  /// The enforced policies that isolate the subject, sorted: a default deny is theirs.
  public var isolating: [PolicyReference]
  /// The audit policies that would, sorted.
  public var auditing: [PolicyReference]

  public init(
    direction: PolicyDirection, rules: [RuleReference], isolating: [PolicyReference], auditing: [PolicyReference]
  ) {
    self.direction = direction
    self.rules = rules
    self.isolating = isolating
    self.auditing = auditing
  }

  public func rule(of clause: Clause) -> RuleReference? {
    clause.kind == .allow && Int(clause.index) < rules.count ? rules[Int(clause.index)] : nil
  }

  /// The policies a clause is by: one rule's, or all that isolate.
  public func policies(of clause: Clause) -> [PolicyReference] {
    switch clause.kind {
    case .allow: rule(of: clause).map { [$0.policy] } ?? []
    case .notIsolated: []
    case .defaultDeny, .overLimit: isolating
    case .auditDeny: auditing
    }
  }

  public func add(to hash: inout ContentHash) {
    hash.add(direction.rawValue)
    for rule in rules {
      hash.add("\(rule.policy)")
      hash.add(rule.index)
    }
    for list in [isolating, auditing] {
      hash.add(UInt8(0xfe))
      for policy in list { hash.add("\(policy)") }
    }
  }
}

public struct PairKey: Sendable, Hashable, CustomStringConvertible {
  public var subject: SubjectID
  /// `any`: the subject's wildcard, for identities without a pair of their own.
  public var identity: IdentityID

  public init(_ subject: SubjectID, _ identity: IdentityID) {
    self.subject = subject
    self.identity = identity
  }
  public var description: String { "\(subject) . \(identity)" }
}

public struct PairValue: Sendable, Hashable, CustomStringConvertible {
  public var portSet: PortSetID
  public var attribution: AttributionID

  public init(portSet: PortSetID, attribution: AttributionID) {
    self.portSet = portSet
    self.attribution = attribution
  }
  public var description: String { "ports \(portSet) by \(attribution)" }
}

/// A clause of an attribution: what is counted, and named in a drop line.
public struct ClauseKey: Sendable, Hashable, Comparable, CustomStringConvertible {
  public var attribution: AttributionID
  public var clause: Clause

  public init(_ attribution: AttributionID, _ clause: Clause) {
    self.attribution = attribution
    self.clause = clause
  }
  public static func < (left: Self, right: Self) -> Bool {
    (left.attribution, left.clause) < (right.attribution, right.clause)
  }
  public var description: String { "\(attribution) \(clause)" }
}

/// The number that names a clause in an engine's event.
public enum ClauseLabel {
  /// The bit that says that the packet passed: who reads an event knows it without tables.
  public static let passes: UInt32 = 1
  public static func lowestBit(of clause: Clause) -> UInt32 { clause.isAllowed ? passes : 0 }
}

/// What local pods may send and receive.
///
/// Invariants: every subject that an endpoint names (but `unrestricted`) has its wildcard pair; a pair's port set and
/// attribution exist; every clause of its port set stands with its attribution in `clauses`. Pairs, port sets and
/// attributions never change once made: what changes is which subject an endpoint has, and which identity an address.
/// In every delta both the old and the new subjects of endpoints have their pairs with the new identities, so that each
/// packet meets the old world or the new one where identities change before subjects, or both at once.
public struct PolicyTable: Sendable, Equatable {
  public internal(set) var pairs: [PairKey: PairValue] = [:]
  public internal(set) var portSets: [PortSetID: PortSet] = [:]
  public internal(set) var attributions: [AttributionID: Attribution] = [:]
  /// With the clause's label, unique.
  public internal(set) var clauses: [ClauseKey: UInt32] = [:]

  public init() {}
}

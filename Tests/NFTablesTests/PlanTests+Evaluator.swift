import DataplaneModel
import NetworkTypes

@testable import NFTables

/// The kernel's maps as dictionaries, and the look-ups of the rules (`Layout`) done by hand.
///
/// A packet is evaluated over several states, for commits that happen while it is under way: every look-up may meet the
/// state of the one before it or any later one.
struct MapModel {
  struct Refusal: Error, CustomStringConvertible {
    var description: String
  }

  private(set) var entries: [MapEntry.Key: MapEntry] = [:]
  private(set) var chains: Set<String> = []

  /// One transaction, as strict as the kernel: deletions first, none of what is not there; no second value for a key; no
  /// verdict to a chain that does not exist, and no chain removed that a verdict leads to.
  mutating func commit(_ operations: [NFTables.Operation]) throws(Refusal) {
    for case .addChain(let family, let chain) in operations { chains.insert("\(family) \(chain.name)") }
    for case .delete(let entry) in operations {
      guard entries[entry.key] == entry else { throw Refusal(description: "\(entry) is not there to delete") }
      entries[entry.key] = nil
    }
    for case .add(let entry) in operations {
      if let known = entries[entry.key], known != entry { throw Refusal(description: "\(entry): \(known) is there") }
      if case .verdict(let family, _, _, let verdict) = entry, let chain = verdict.chain,
        !Self.constant.contains(chain),
        !chains.contains("\(family) \(chain)")
      {
        throw Refusal(description: "\(entry): no such chain")
      }
      entries[entry.key] = entry
    }
    for case .deleteChain(let family, let name) in operations {
      let user = entries.values.first {
        if case .verdict(family, _, _, let verdict) = $0 { verdict.chain == name } else { false }
      }
      if let user { throw Refusal(description: "chain \(name) is in use by \(user)") }
      guard chains.remove("\(family) \(name)") != nil else { throw Refusal(description: "no chain \(name)") }
    }
  }

  private static let constant: Set<String> = ["reject-flow", "drop-no-local-endpoint"]
}

/// One packet's way through the rules of `services`, over `states`.
struct MapWalk {
  enum Outcome: Hashable, CustomStringConvertible {
    case backend(SocketAddress)
    case untouched
    case rejected
    case dropped(DropReason)
    /// The drop of the affinity chain: the one case in which a packet between two states is asked to come again.
    case lost

    init(_ outcome: ServiceOutcome) {
      self =
        switch outcome {
        case .translated(let backend, _): .backend(backend)
        case .untouched: .untouched
        case .rejected: .rejected
        case .dropped(let reason): .dropped(reason)
        }
    }
    var description: String {
      switch self {
      case .backend(let backend): "\(backend)"
      case .untouched: "untouched"
      case .rejected: "rejected"
      case .dropped(let reason): "dropped: \(reason.rawValue)"
      case .lost: "lost"
      }
    }
  }

  let states: [MapModel]
  let packet: Packet
  /// The client's backend number, by service.
  let remembered: [UInt32: UInt32]

  private var family: IPFamily { packet.destination.family }
  private var port: TransportPort { TransportPort(proto: packet.proto.rawValue, port: packet.destinationPort) }

  /// Every outcome that can be met.
  func outcomes() -> Set<Outcome> {
    var result: Set<Outcome> = []
    number(.frontend(.guarded, packet.destination, port, value: 0), from: 0) { list, state in
      guard let list else { return remoteRule(state, &result) }
      for next in state..<states.count {
        let isInside = states[next].entries.values.contains {
          if case .sourceRange(list, let range) = $0 { range.contains(packet.source) } else { false }
        }
        if isInside { remoteRule(next, &result) } else { result.insert(.dropped(.sourceRange)) }
      }
    }
    return result
  }

  // MARK: Rules of `services`

  private func remoteRule(_ state: Int, _ result: inout Set<Outcome>) {
    guard packet.origin == .outside else { return localRule(state, &result) }
    dispatch(isRemote: true, state, &result) { localRule($0, &$1) }
  }

  private func localRule(_ state: Int, _ result: inout Set<Outcome>) {
    dispatch(isRemote: false, state, &result) { lastRules($0, &$1) }
  }

  private func lastRules(_ state: Int, _ result: inout Set<Outcome>) {
    for state in state..<states.count {
      let entries = states[state].entries
      if entries[MapEntry.address(.serviceAddresses, packet.destination).key] != nil {
        result.insert(.rejected)
        continue
      }
      for later in state..<states.count {
        let isUnallocated = states[later].entries.values.contains {
          if case .range(.serviceRanges, let range) = $0 { range.contains(packet.destination) } else { false }
        }
        result.insert(isUnallocated ? .dropped(.unallocatedServiceAddress) : .untouched)
      }
    }
  }

  /// Goes on with `next` where a look-up fails.
  private func dispatch(
    isRemote: Bool, _ state: Int, _ result: inout Set<Outcome>, next: (Int, inout Set<Outcome>) -> Void
  ) {
    frontend(isRemote, state) { value, state in
      guard let value else { return next(state, &result) }
      number(.set(family, key: value & FrontendFlag.entryMask, code: 0), from: state) { code, state in
        guard let code else { return next(state, &result) }
        verdict(isRemote ? .remoteDispatch : .dispatch, code, state) { verdict, state in
          switch verdict?.chain {
          case nil: next(state, &result)
          case "reject-flow": result.insert(.rejected)
          case "drop-no-local-endpoint": result.insert(.dropped(.noLocalEndpoint))
          case let chain? where chain.hasPrefix("balance-"):
            balance(Self.number(of: chain), isRemote, state, &result) { next($1, &$2) }
          default: affinity(isRemote, state, &result)
          }
        }
      }
    }
  }

  // MARK: Chains of their own

  /// `remembers` is what follows where the client was remembered with a backend number: the chain returns.
  private func balance(
    _ count: UInt32, _ isRemote: Bool, _ state: Int, _ result: inout Set<Outcome>,
    remembers: (UInt32?, Int, inout Set<Outcome>) -> Void
  ) {
    frontend(isRemote, state) { value, state in
      guard let value else { return remembers(nil, state, &result) }
      let set = value & FrontendFlag.setMask
      for slot in 0..<count {
        for next in state..<states.count {
          if case .backend(_, _, let backend)? = entry(next, slotKey(slot, set)) {
            result.insert(.backend(backend))
            continue
          }
          number(.stickySlot(family, slot: slot, set: set, backend: 0), from: next) { remembers($0, $1, &result) }
        }
      }
    }
  }

  private func affinity(_ isRemote: Bool, _ state: Int, _ result: inout Set<Outcome>) {
    frontend(isRemote, state) { value, state in
      let service = (value ?? 0) & FrontendFlag.serviceMask
      guard value != nil, let backend = remembered[service] else { return unknown(isRemote, state, &result) }
      known(value ?? 0, backend, state, &result) { unknown(isRemote, $0, &$1) }
    }
  }

  private func unknown(_ isRemote: Bool, _ state: Int, _ result: inout Set<Outcome>) {
    frontend(isRemote, state) { value, state in
      guard let value else {
        result.insert(.lost)
        return
      }
      number(.set(family, key: value & FrontendFlag.setMask, code: 0), from: state) { code, state in
        guard let code else {
          result.insert(.lost)
          return
        }
        verdict(isRemote ? .remoteBalancers : .balancers, code, state) { verdict, state in
          guard let chain = verdict?.chain else {
            result.insert(.lost)
            return
          }
          balance(Self.number(of: chain), isRemote, state, &result) { backend, state, result in
            guard let backend else {
              result.insert(.lost)
              return
            }
            frontend(isRemote, state) { value, state in
              known(value ?? 0, backend, state, &result) { $1.insert(.lost) }
            }
          }
        }
      }
    }
  }

  private func known(
    _ value: UInt32, _ backend: UInt32, _ state: Int, _ result: inout Set<Outcome>,
    miss: (Int, inout Set<Outcome>) -> Void
  ) {
    let set = value & FrontendFlag.setMask
    for next in state..<states.count {
      if case .stickyBackend(_, _, let address)? = entry(next, stickyKey(backend, set)) {
        result.insert(.backend(address))
      } else {
        miss(next, &result)
      }
    }
  }

  // MARK: Look-ups

  private func entry(_ state: Int, _ key: MapEntry.Key) -> MapEntry? { states[state].entries[key] }

  private func slotKey(_ slot: UInt32, _ set: UInt32) -> MapEntry.Key {
    MapEntry.backend(slot: slot, set: set, SocketAddress(.unspecified(family), anyPort)).key
  }
  private func stickyKey(_ backend: UInt32, _ set: UInt32) -> MapEntry.Key {
    MapEntry.stickyBackend(backend: backend, set: set, SocketAddress(.unspecified(family), anyPort)).key
  }
  private var anyPort: Port { at("::", 1).port }

  private func frontend(_ isRemote: Bool, _ state: Int, _ body: (UInt32?, Int) -> Void) {
    number(.frontend(isRemote ? .remoteFrontends : .frontends, packet.destination, port, value: 0), from: state, body)
  }

  private func number(_ wanted: MapEntry, from state: Int, _ body: (UInt32?, Int) -> Void) {
    for next in state..<states.count {
      switch entry(next, wanted.key) {
      case .frontend(_, _, _, let value)?: body(value, next)
      case .set(_, _, let code)?: body(code, next)
      case .stickySlot(_, _, _, let backend)?: body(backend, next)
      default: body(nil, next)
      }
    }
  }

  private func verdict(_ map: MapName, _ code: UInt32, _ state: Int, _ body: (Verdict?, Int) -> Void) {
    for next in state..<states.count {
      if case .verdict(_, _, _, let verdict)? = entry(next, MapEntry.verdict(family, map, code: code, .accept).key) {
        body(verdict, next)
      } else {
        body(nil, next)
      }
    }
  }

  private static func number(of chain: String) -> UInt32 { UInt32(chain.split(separator: "-").last ?? "") ?? 0 }
}

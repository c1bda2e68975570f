import NetworkTypes

/// Which of a set's slots a client's flow gets, whatever node it meets: Maglev hashing (Eisenbud et al., NSDI 2016).
///
/// Made from the backends alone, so that all nodes have the same table; where one backend comes or goes, nearly all slots
/// stay whose they are.
public struct MaglevTable: Sendable, Hashable {
  /// Slots of each table: prime, and a hundred times the backends of a Service that is spread evenly within a per cent.
  public static let size = 4093

  /// Whose each slot is: an index into the backends.
  public let owners: [UInt16]

  /// nil where there is no backend, or not a slot for each.
  ///
  /// - Parameter backends: each once, in the same order on every node.
  public init?(_ backends: [SocketAddress]) {
    guard (1...Self.size).contains(backends.count) else { return nil }
    // Each backend has an order of its own in which it would like the slots: from `first` on, in steps of `step`.
    var wishes = backends.map { backend -> (next: Int, step: Int) in
      let first = JenkinsHash.hash(backend.words, seed: 1)
      let step = JenkinsHash.hash(backend.words, seed: 2)
      return (JenkinsHash.scale(first, below: Self.size), 1 + JenkinsHash.scale(step, below: Self.size - 1))
    }
    var owners = [UInt16?](repeating: nil, count: Self.size)
    var taken = 0
    while taken < Self.size {
      for index in wishes.indices where taken < Self.size {
        while owners[wishes[index].next] != nil {
          wishes[index].next = (wishes[index].next + wishes[index].step) % Self.size
        }
        owners[wishes[index].next] = UInt16(index)
        taken += 1
      }
    }
    self.owners = owners.compactMap { $0 }
  }

  /// The slot of a flow from a client's address and port: the same in the kernel's `jhash`, in bpf/include/balance.h and
  /// here.
  public static func slot(client: IPAddress, port: UInt16) -> Int {
    // Both in network byte order, a register of 32 bits for each word.
    let words = client.words + [UInt32(port.bigEndian)]
    return JenkinsHash.scale(JenkinsHash.hash(words, seed: seed), below: size)
  }

  /// Of the hash of clients, for all engines.
  public static let seed: UInt32 = 0x534c_5543
}

extension IPAddress {
  /// As the bytes lie in memory.
  fileprivate var words: [UInt32] {
    let bytes = Array(self.bytes)
    return stride(from: 0, to: bytes.count, by: 4).map { start in
      bytes[start..<start + 4].reversed().reduce(0) { $0 << 8 | UInt32($1) }
    }
  }
}

extension SocketAddress {
  fileprivate var words: [UInt32] { address.words + [UInt32(port.number.bigEndian)] }
}

/// Bob Jenkins' lookup3 over words of 32 bits, as the kernel's include/linux/jhash.h has it.
enum JenkinsHash {
  static func hash(_ words: [UInt32], seed: UInt32) -> UInt32 {
    var state = State(0xdead_beef &+ UInt32(words.count) &* 4 &+ seed)
    var rest = words[...]
    while rest.count > 3 {
      state.add(rest.prefix(3))
      state.mix()
      rest = rest.dropFirst(3)
    }
    guard !rest.isEmpty else { return state.c }
    state.add(rest)
    state.finish()
    return state.c
  }

  /// The kernel's `reciprocal_scale`.
  static func scale(_ hash: UInt32, below bound: Int) -> Int { Int((UInt64(hash) * UInt64(bound)) >> 32) }

  private struct State {
    var (a, b, c): (UInt32, UInt32, UInt32)

    init(_ value: UInt32) { (a, b, c) = (value, value, value) }

    mutating func add(_ words: ArraySlice<UInt32>) {
      for (index, word) in words.enumerated() {
        switch index {
        case 0: a &+= word
        case 1: b &+= word
        default: c &+= word
        }
      }
    }

    mutating func mix() {
      (a, c) = ((a &- c) ^ c.rotated(4), c &+ b)
      (b, a) = ((b &- a) ^ a.rotated(6), a &+ c)
      (c, b) = ((c &- b) ^ b.rotated(8), b &+ a)
      (a, c) = ((a &- c) ^ c.rotated(16), c &+ b)
      (b, a) = ((b &- a) ^ a.rotated(19), a &+ c)
      (c, b) = ((c &- b) ^ b.rotated(4), b &+ a)
    }

    mutating func finish() {
      c = (c ^ b) &- b.rotated(14)
      a = (a ^ c) &- c.rotated(11)
      b = (b ^ a) &- a.rotated(25)
      c = (c ^ b) &- b.rotated(16)
      a = (a ^ c) &- c.rotated(4)
      b = (b ^ a) &- a.rotated(14)
      c = (c ^ b) &- b.rotated(24)
    }
  }
}

extension UInt32 {
  fileprivate func rotated(_ bits: UInt32) -> UInt32 { self << bits | self >> (32 - bits) }
}

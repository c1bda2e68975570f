import CLinux

/// A classic BPF program (linux/filter.h) that looks at a frame from its Ethernet header on and says what becomes of it.
///
/// What lies beyond a frame's end reads as the verdict 0, which lets it pass: ask for the length first.
public struct ClassicProgram: Sendable, Hashable {
  public enum Verdict: UInt32, Sendable {
    /// `TC_ACT_UNSPEC`: to the device's next filter.
    case pass = 0xffff_ffff
    /// `TC_ACT_SHOT`.
    case drop = 2
  }

  /// A place to jump to, forward only.
  public struct Label: Sendable, Hashable {
    fileprivate let number: Int
  }

  public enum Width: Sendable {
    case byte, half, word

    fileprivate var code: CInt {
      switch self {
      case .byte: BPF_B
      case .half: BPF_H
      case .word: BPF_W
      }
    }
  }

  private var steps: [sock_filter] = []
  private var jumps: [(step: Int, label: Label)] = []
  private var places: [Label: Int] = [:]
  private var labels = 0

  public init() {}

  public static func == (left: Self, right: Self) -> Bool { left.bytes == right.bytes }
  public func hash(into hasher: inout Hasher) { hasher.combine(bytes) }

  // MARK: Writing

  public mutating func label() -> Label {
    labels += 1
    return Label(number: labels)
  }

  /// Here is where jumps to the label lead.
  public mutating func place(_ label: Label) { places[label] = steps.count }

  /// Loads a number in network byte order; what is asked next is asked of it.
  public mutating func load(_ width: Width, _ offset: Int) {
    append(BPF_LD | width.code | BPF_ABS, UInt32(truncatingIfNeeded: offset))
  }

  /// Loads the frame's length in bytes.
  public mutating func loadLength() { append(BPF_LD | BPF_W | BPF_LEN, 0) }

  /// Loads 1 where the frame is in a VLAN, whose tag the kernel has taken off, else 0.
  public mutating func loadIsTagged() { load(.byte, Int(SKF_AD_OFF) + Int(SKF_AD_VLAN_TAG_PRESENT)) }

  public mutating func ifEqual(_ number: UInt32, goto label: Label) { jump(BPF_JEQ, number, label, where: true) }
  public mutating func ifNotEqual(_ number: UInt32, goto label: Label) { jump(BPF_JEQ, number, label, where: false) }
  public mutating func ifLess(_ number: UInt32, goto label: Label) { jump(BPF_JGE, number, label, where: false) }
  public mutating func ifMore(_ number: UInt32, goto label: Label) { jump(BPF_JGT, number, label, where: true) }

  public mutating func goto(_ label: Label) {
    jumps.append((steps.count, label))
    append(BPF_JMP | BPF_JA, 0)
  }

  public mutating func end(_ verdict: Verdict) { append(BPF_RET | BPF_K, verdict.rawValue) }

  private mutating func append(_ code: CInt, _ number: UInt32, then: UInt8 = 0, otherwise: UInt8 = 0) {
    steps.append(sock_filter(code: UInt16(truncatingIfNeeded: code), jt: then, jf: otherwise, k: number))
  }

  /// Over a jump of its own: the one in a comparison reaches 255 steps only.
  private mutating func jump(_ comparison: CInt, _ number: UInt32, _ label: Label, where wanted: Bool) {
    append(BPF_JMP | comparison | BPF_K, number, then: wanted ? 0 : 1, otherwise: wanted ? 1 : 0)
    goto(label)
  }

  // MARK: Result

  public var count: Int { steps.count }

  /// As the kernel takes it.
  public var bytes: [UInt8] {
    var steps = steps
    for (step, label) in jumps {
      guard let place = places[label] else { preconditionFailure("a jump to a label that was placed nowhere") }
      steps[step].k = UInt32(place - step - 1)
    }
    return steps.flatMap { withUnsafeBytes(of: $0) { Array($0) } }
  }
}

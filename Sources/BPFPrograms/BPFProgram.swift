/// One compiled object of `bpf/`: an ELF file with programs, maps and BTF. The build writes the values of this type
/// (Plugins/CompileBPF).
public struct BPFProgram: Sendable {
  /// The source's name, without suffix.
  public let name: String
  private let base64: StaticString

  init(name: String, base64: StaticString) {
    self.name = name
    self.base64 = base64
  }

  /// The ELF file's bytes.
  public var object: [UInt8] {
    var bytes: [UInt8] = []
    base64.withUTF8Buffer { text in
      bytes.reserveCapacity(text.count / 4 * 3)
      var (group, count): (UInt32, Int) = (0, 0)
      for character in text {
        guard let value = Self.value(of: character) else { continue }
        group = group << 6 | value
        count += 1
        guard count == 4 else { continue }
        bytes += [UInt8(group >> 16 & 255), UInt8(group >> 8 & 255), UInt8(group & 255)]
        (group, count) = (0, 0)
      }
      // Two characters left over are one byte, three are two.
      if count == 2 { bytes.append(UInt8(group >> 4 & 255)) }
      if count == 3 { bytes += [UInt8(group >> 10 & 255), UInt8(group >> 2 & 255)] }
    }
    return bytes
  }

  private static func value(of character: UInt8) -> UInt32? {
    switch character {
    case UInt8(ascii: "A")...UInt8(ascii: "Z"): UInt32(character - UInt8(ascii: "A"))
    case UInt8(ascii: "a")...UInt8(ascii: "z"): UInt32(character - UInt8(ascii: "a")) + 26
    case UInt8(ascii: "0")...UInt8(ascii: "9"): UInt32(character - UInt8(ascii: "0")) + 52
    case UInt8(ascii: "+"): 62
    case UInt8(ascii: "/"): 63
    default: nil
    }
  }
}

/// The API server's rules for names, labels and port names (`apimachinery/pkg/util/validation`).
enum NameRules {
  /// What a name must be, as a message says it.
  static let labelRule = "must be lower-case letters, digits and '-', at most 63, beginning and ending with no '-'"
  static let subdomainRule =
    "must be lower-case letters, digits, '-' and '.', at most 253, each part beginning and ending with no '-'"
  static let portNameRule =
    "must be lower-case letters, digits and single '-', at most 15, with a letter, beginning and ending with no '-'"
  static let labelKeyRule = "must be letters, digits, '-', '_' and '.', at most 63, perhaps after a domain and '/'"
  static let labelValueRule =
    "must be letters, digits, '-', '_' and '.', at most 63, beginning and ending with a letter or digit"

  /// RFC 1123.
  static func isLabel(_ text: String) -> Bool { text.utf8.count <= 63 && isLabelOfAnyLength(text.utf8) }

  static func isSubdomain(_ text: some StringProtocol) -> Bool {
    guard text.utf8.count <= 253 else { return false }
    var rest = Substring(text).utf8
    while let dot = rest.firstIndex(of: UInt8(ascii: ".")) {
      guard isLabelOfAnyLength(rest[..<dot]) else { return false }
      rest = rest[rest.index(after: dot)...]
    }
    return isLabelOfAnyLength(rest)
  }

  /// RFC 6335, section 5.1.
  static func isPortName(_ text: String) -> Bool {
    guard text.utf8.count <= 15, isLabelOfAnyLength(text.utf8), text.utf8.contains(where: isLower) else { return false }
    var previous: UInt8 = 0
    for byte in text.utf8 {
      if byte == UInt8(ascii: "-"), previous == byte { return false }
      previous = byte
    }
    return true
  }

  /// A label's or an annotation's key.
  static func isQualifiedName(_ text: String) -> Bool {
    guard let slash = text.utf8.firstIndex(of: UInt8(ascii: "/")) else { return isQualifiedPart(text.utf8) }
    return isSubdomain(text[..<slash]) && isQualifiedPart(text.utf8[text.utf8.index(after: slash)...])
  }

  static func isLabelValue(_ text: String) -> Bool { text.isEmpty || isQualifiedPart(text.utf8) }

  private static func isLower(_ byte: UInt8) -> Bool { (UInt8(ascii: "a")...UInt8(ascii: "z")).contains(byte) }
  private static func isDigit(_ byte: UInt8) -> Bool { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) }
  private static func isAlphanumeric(_ byte: UInt8) -> Bool { isLower(byte | 0x20) || isDigit(byte) }

  private static func isLabelOfAnyLength(_ bytes: some BidirectionalCollection<UInt8>) -> Bool {
    guard let first = bytes.first, let last = bytes.last, first != UInt8(ascii: "-"), last != UInt8(ascii: "-")
    else { return false }
    return bytes.allSatisfy { isLower($0) || isDigit($0) || $0 == UInt8(ascii: "-") }
  }

  private static func isQualifiedPart(_ bytes: some BidirectionalCollection<UInt8>) -> Bool {
    guard let first = bytes.first, let last = bytes.last, isAlphanumeric(first), isAlphanumeric(last),
      bytes.count <= 63
    else { return false }
    return bytes.allSatisfy {
      isAlphanumeric($0) || $0 == UInt8(ascii: "-") || $0 == UInt8(ascii: "_") || $0 == UInt8(ascii: ".")
    }
  }
}

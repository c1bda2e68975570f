import ArgumentParser
import Glibc

enum ColorMode: String, CaseIterable, ExpressibleByArgument { case auto, always, never }

/// How text is marked on a terminal.
struct Terminal {
  enum Color: Int { case red = 31, green = 32, yellow = 33 }

  var isColored: Bool

  init(isColored: Bool) { self.isColored = isColored }

  /// `auto` colours a terminal only, and none for those who set NO_COLOR (https://no-color.org).
  init(_ mode: ColorMode, descriptor: CInt = STDOUT_FILENO) {
    func variable(_ name: String) -> String { getenv(name).map { String(cString: $0) } ?? "" }
    isColored =
      switch mode {
      case .always: true
      case .never: false
      case .auto: isatty(descriptor) == 1 && variable("NO_COLOR").isEmpty && variable("TERM") != "dumb"
      }
  }

  func paint(_ text: String, _ color: Color?) -> String {
    guard isColored, let color else { return text }
    return "\u{1b}[1;\(color.rawValue)m\(text)\u{1b}[0m"
  }

  /// Text from elsewhere without what steers a terminal (C0, DEL, C1) or reorders a line (bidirectional marks).
  static func printable(_ text: String) -> String {
    func steers(_ scalar: Unicode.Scalar) -> Bool {
      switch scalar.value {
      case 0..<0x20, 0x7f...0x9f, 0x200e...0x200f, 0x2028...0x202e, 0x2066...0x2069: true
      default: false
      }
    }
    guard text.unicodeScalars.contains(where: steers) else { return text }
    var result = String.UnicodeScalarView()
    for scalar in text.unicodeScalars { result.append(steers(scalar) ? "?" : scalar) }
    return String(result)
  }
}

extension Terminal {
  static func printable(lines: [String]) -> String { lines.map(printable).joined(separator: "\n") }
}

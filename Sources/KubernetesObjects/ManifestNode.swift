/// What a manifest says before anyone knows what it means: the neutral tree between a text format and the decoder.

/// A scalar keeps its text as written: the field that reads it decides whether `0x10`, `1e3`, `y` or `null` is a
/// number, a boolean or a word, so that nothing is lost to YAML's guesses.
public enum ManifestNode: Sendable, Hashable {
  /// The value of a key, in the order written.
  public struct Entry: Sendable, Hashable {
    public var key: String
    public var value: ManifestNode

    public init(_ key: String, _ value: ManifestNode) {
      self.key = key
      self.value = value
    }
  }

  /// `null`, `~` or nothing at all.
  case null(line: Int)
  /// `isQuoted`: surely a string (quotes, a block scalar, a `!!str` tag).
  case scalar(String, isQuoted: Bool, line: Int)
  case sequence([ManifestNode], line: Int)
  /// No key twice.
  case mapping([Entry], line: Int)

  /// Where it begins, counted from 1 in the whole file.
  public var line: Int {
    switch self {
    case .null(let line), .scalar(_, _, let line), .sequence(_, let line), .mapping(_, let line): line
    }
  }

  /// The value of a key of a mapping; nil where there is none, it is null, or this is no mapping.
  public subscript(key: String) -> ManifestNode? {
    guard case .mapping(let entries, _) = self else { return nil }
    for entry in entries where entry.key == key {
      if case .null = entry.value { return nil }
      return entry.value
    }
    return nil
  }

  /// `a list`, `a mapping`, `"text"`: how a message names it.
  package var summary: String {
    switch self {
    case .null: "null"
    case .sequence: "a list"
    case .mapping: "a mapping"
    case .scalar(let text, let isQuoted, _): isQuoted ? quoted(text) : abbreviated(text)
    }
  }
}

/// Text for a message: one line, not longer than a person reads.
func abbreviated(_ text: some StringProtocol) -> String {
  var result = ""
  for scalar in text.unicodeScalars.prefix(60) {
    let isPrintable = scalar.value >= 32 && scalar.value != 127 && !scalar.properties.generalCategory.isControl
    if isPrintable { result.unicodeScalars.append(scalar) } else { result += scalar.escaped(asASCII: true) }
  }
  return text.unicodeScalars.dropFirst(60).isEmpty ? result : result + "..."
}

func quoted(_ text: some StringProtocol) -> String { "\"\(abbreviated(text))\"" }

extension Unicode.GeneralCategory {
  /// Would break or reorder a line of a log.
  fileprivate var isControl: Bool {
    switch self {
    case .control, .format, .lineSeparator, .paragraphSeparator: true
    default: false
    }
  }
}

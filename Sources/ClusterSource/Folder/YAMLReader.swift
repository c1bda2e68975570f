import KubernetesObjects
import Yams

/// From the bytes of YAML (or JSON, which is YAML) to manifest trees, by way of Yams.

/// The bytes are not the YAML they should be.
struct YAMLProblem: Error, Equatable, CustomStringConvertible {
  /// Counted from 1 in the whole file.
  var line: Int
  var message: String

  var description: String { "line \(line): \(message)" }
}

enum YAMLReader {
  /// Reads the documents of one piece of a file, nearly always one.
  /// - Parameters:
  ///   - bytes: UTF-8 text.
  ///   - firstLine: the line of the file that the piece begins with.
  static func documents(in bytes: ArraySlice<UInt8>, firstLine: Int) throws(YAMLProblem) -> [ManifestNode] {
    guard let text = String(validating: bytes, as: UTF8.self) else {
      throw YAMLProblem(line: firstInvalidLine(bytes, firstLine), message: "is not UTF-8 text")
    }
    try refuseNestedKeys(bytes, firstLine: firstLine)
    var converter = TreeConverter(lineOffset: firstLine - 1, budget: max(100_000, bytes.count))
    do {
      // No resolver: what a scalar means is the field's affair, and Yams' rules are regular expressions.
      let parser = try Parser(yaml: text, resolver: .basic, encoding: .utf8)
      var documents: [ManifestNode] = []
      while let root = try parser.nextRoot() { documents.append(try converter.node(root)) }
      return documents
    } catch let problem as YAMLProblem {
      throw problem
    } catch let error as YamlError {
      throw problem(error, firstLine: firstLine)
    } catch {
      throw YAMLProblem(line: firstLine, message: "is not YAML: \(error)")
    }
  }

  private static func firstInvalidLine(_ bytes: ArraySlice<UInt8>, _ firstLine: Int) -> Int {
    var line = firstLine
    for part in bytes.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false) {
      guard String(validating: part, as: UTF8.self) != nil else { return line }
      line += 1
    }
    return firstLine
  }

  private static func problem(_ error: YamlError, firstLine: Int) -> YAMLProblem {
    switch error {
    case .scanner(let context, let problem, let mark, _), .parser(let context, let problem, let mark, _),
      .composer(let context, let problem, let mark, _):
      let about = context.map { "\($0.text), line \($0.mark.line + firstLine - 1): " } ?? ""
      return YAMLProblem(line: mark.line + firstLine - 1, message: "is not YAML: \(about)\(problem)")
    case .duplicatedKeysInMapping(let keys, let context):
      let names = keys.map { "\"\($0)\"" }.joined(separator: ", ")
      return YAMLProblem(line: context.mark.line + firstLine - 1, message: "is not YAML: the key \(names) stands twice")
    case .reader(let problem, let offset, _, let text):
      let before = text.unicodeScalars.prefix(offset ?? 0)
      let line = firstLine + before.count { $0 == "\n" }
      return YAMLProblem(line: line, message: "is not YAML: \(problem)")
    default: return YAMLProblem(line: firstLine, message: "is not YAML: \(error)")
    }
  }

  /// Yams hashes every key with all it holds, and aliases can make that grow without bounds in a small file ("billion
  /// laughs"). Keys that are not plain text have no use in manifests, so they are refused before Yams sees them, in
  /// documents that have aliases at all.
  private static func refuseNestedKeys(_ bytes: ArraySlice<UInt8>, firstLine: Int) throws(YAMLProblem) {
    // Anchors are rare: nearly every document is done here.
    guard bytes.contains(UInt8(ascii: "&")) else { return }
    var previous = UInt8(ascii: "\n")
    var hasAnchor = false
    var hasAlias = false
    var nestedKeyLine: Int?
    var line = firstLine
    func opensToken(_ byte: UInt8) -> Bool {
      switch byte {
      case 0x20, 0x09...0x0d, UInt8(ascii: ","), UInt8(ascii: "["), UInt8(ascii: "{"): true
      default: false
      }
    }
    // An alias that is a key itself, `*a : b`, lasts until a blank.
    var isInAlias = false
    var aliasEnded = false
    for byte in bytes {
      switch byte {
      case UInt8(ascii: "\n"): line += 1
      case UInt8(ascii: "&"): hasAnchor = hasAnchor || opensToken(previous)
      case UInt8(ascii: "*") where opensToken(previous): (hasAlias, isInAlias) = (true, true)
      case UInt8(ascii: "?") where opensToken(previous): nestedKeyLine = nestedKeyLine ?? line
      case UInt8(ascii: ":") where aliasEnded || previous == UInt8(ascii: "]") || previous == UInt8(ascii: "}"):
        nestedKeyLine = nestedKeyLine ?? line
      default: break
      }
      if byte == 0x20 || byte == 0x09 {
        aliasEnded = aliasEnded || isInAlias
        isInAlias = false
      } else {
        aliasEnded = false
        isInAlias = isInAlias && !opensToken(byte)
      }
      previous = byte
    }
    if hasAnchor, hasAlias, let nestedKeyLine {
      throw YAMLProblem(
        line: nestedKeyLine, message: "a list, mapping or alias as a key is not accepted beside aliases")
    }
  }
}

/// Yams' nodes to the decoder's.
private struct TreeConverter {
  var lineOffset: Int
  /// Nodes left to make. A document has fewer than bytes; only aliases of aliases can make more.
  var budget: Int

  mutating func node(_ node: Yams.Node) throws -> ManifestNode {
    budget -= 1
    let line = (node.mark?.line ?? 1) + lineOffset
    guard budget > 0 else { throw YAMLProblem(line: line, message: "its aliases expand to too many values") }
    switch node {
    case .scalar(let scalar): return self.scalar(scalar, line)
    case .sequence(let sequence):
      var elements: [ManifestNode] = []
      elements.reserveCapacity(sequence.count)
      for element in sequence { elements.append(try self.node(element)) }
      return .sequence(elements, line: line)
    case .mapping(let mapping): return try self.mapping(mapping, line)
    case .alias: return .null(line: line)
    }
  }

  private func scalar(_ scalar: Yams.Node.Scalar, _ line: Int) -> ManifestNode {
    let tag = scalar.tag.description
    let isPlain = scalar.style == .plain || scalar.style == .any
    let isQuoted = tag.isEmpty ? !isPlain : !isPlain && tag == "!" || tag.hasSuffix(":str")
    if !isQuoted, ["", "~", "null", "Null", "NULL"].contains(scalar.string) { return .null(line: line) }
    return .scalar(scalar.string, isQuoted: isQuoted, line: line)
  }

  private mutating func mapping(_ mapping: Yams.Node.Mapping, _ line: Int) throws -> ManifestNode {
    var entries: [ManifestNode.Entry] = []
    entries.reserveCapacity(mapping.count)
    var merged: [ManifestNode] = []
    for (key, value) in mapping {
      guard case .scalar(let name) = key else {
        throw YAMLProblem(line: (key.mark?.line ?? 1) + lineOffset, message: "a key must be text")
      }
      if name.string == "<<", name.style == .plain {
        let base = try node(value)
        if case .sequence(let several, _) = base { merged += several } else { merged.append(base) }
      } else {
        entries.append(ManifestNode.Entry(name.string, try node(value)))
      }
    }
    for base in merged {
      guard case .mapping(let inherited, _) = base else {
        throw YAMLProblem(line: base.line, message: "<< needs a mapping")
      }
      // What is written here, or in an earlier base, wins.
      for entry in inherited where !entries.contains(where: { $0.key == entry.key }) { entries.append(entry) }
    }
    return .mapping(entries, line: line)
  }
}

/// Cuts a file into its YAML documents while it is read, so that never more than one of them is in memory as a tree.
struct DocumentSplitter {
  struct Piece {
    var bytes: ArraySlice<UInt8>
    /// The line of the file that the piece begins with, from 1.
    var firstLine: Int
  }

  private var buffer: [UInt8] = []
  /// Where the current piece and its last line that is not complete begin in the buffer.
  private var pieceStart = 0
  private var lineStart = 0
  private var pieceLine = 1
  private var line = 1
  /// The piece has more than blank lines, comments and `%` directives, which belong to the document that follows.
  private var hasContent = false
  private var isAtStart = true

  /// What is held back of a document that has not ended, and where that begins.
  var pendingBytes: Int { buffer.count - pieceStart }
  var pendingLine: Int { pieceLine }

  /// Hands each document that is complete to `visit`.
  mutating func append(_ chunk: UnsafeRawBufferPointer, _ visit: (Piece) throws -> Void) rethrows {
    buffer.append(contentsOf: chunk)
    if isAtStart, buffer.count >= 3 {
      isAtStart = false
      // A byte order mark.
      if buffer.starts(with: [0xef, 0xbb, 0xbf]) { (pieceStart, lineStart) = (3, 3) }
    }
    while let end = newline(from: lineStart) {
      try endLine(at: end, visit)
      lineStart = end + 1
      line += 1
    }
    if pieceStart > 0 {
      buffer.removeSubrange(..<pieceStart)
      lineStart -= pieceStart
      pieceStart = 0
    }
  }

  /// The file ends here.
  mutating func finish(_ visit: (Piece) throws -> Void) rethrows {
    try endLine(at: buffer.count, visit)
    if hasContent { try visit(Piece(bytes: buffer[pieceStart...], firstLine: pieceLine)) }
    self = DocumentSplitter()
  }

  private func newline(from start: Int) -> Int? {
    buffer.withUnsafeBufferPointer { bytes in
      bytes[start...].firstIndex(of: UInt8(ascii: "\n"))
    }
  }

  private mutating func endLine(at end: Int, _ visit: (Piece) throws -> Void) rethrows {
    let text = buffer[lineStart..<end]
    if isMarker(text, "---") {
      if hasContent {
        try visit(Piece(bytes: buffer[pieceStart..<lineStart], firstLine: pieceLine))
        hasContent = false
        (pieceStart, pieceLine) = (lineStart, line)
      }
      // `--- {kind: Service}` is a document of one line.
      hasContent = text.dropFirst(3).contains { !Self.isBlank($0) }
    } else if hasContent, isMarker(text, "...") {
      try visit(Piece(bytes: buffer[pieceStart..<end], firstLine: pieceLine))
      hasContent = false
      (pieceStart, pieceLine) = (min(end + 1, buffer.count), line + 1)
    } else if !hasContent, let first = text.first(where: { !Self.isBlank($0) }) {
      hasContent = first != UInt8(ascii: "#") && !(first == UInt8(ascii: "%") && text.first == first)
    }
  }

  /// `---` or `...` at the beginning of a line ends a document wherever it stands, in quotes and block scalars too.
  private func isMarker(_ line: ArraySlice<UInt8>, _ marker: StaticString) -> Bool {
    guard line.count >= 3, line.first == marker.utf8Start.pointee, line.prefix(3).allSatisfy({ $0 == line.first })
    else { return false }
    return line.dropFirst(3).first.map(Self.isBlank) ?? true
  }

  private static func isBlank(_ byte: UInt8) -> Bool { byte == 0x20 || byte == 0x09 || byte == 0x0d }
}

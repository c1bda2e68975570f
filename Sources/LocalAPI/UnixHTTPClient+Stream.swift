extension UnixHTTPClient {
  /// A longer line of a stream is a bad answer, unless the caller says otherwise. Bytes.
  public static let defaultLineLimit = 1 << 20

  /// Sends a GET and hands over the lines of the answer as they come, without their ends; empty ones, which keep a
  /// connection alive, are left out. Returns when the agent ends the stream or `onLine` returns false.
  ///
  /// The head must come within the time limit, and so must the whole answer where its status is not 200; lines may take
  /// for ever. No more than one line is held. Throws `LocalAPIError`, where the agent vanishes in the middle as
  /// `badResponse`, and whatever `onLine` throws.
  public func stream(
    _ target: String, lineLimit: Int = UnixHTTPClient.defaultLineLimit, onLine: (String) throws -> Bool
  ) throws {
    let connection = try open("GET", target, body: nil)
    var parser = HTTPResponseParser()
    var status = 0
    var refusal: [UInt8] = []
    var lines = LineSplitter(limit: lineLimit)
    while let event = try nextEvent(&parser, connection, deadline: status == 200 ? nil : connection.deadline) {
      switch event {
      case .head(let code): status = code
      case .body(let bytes) where status != 200:
        refusal += bytes.prefix(Self.refusalLimit - refusal.count)
      case .body(let bytes):
        lines.append(bytes)
        while let line = try bounded(lineLimit, { () throws(LineSplitter.LineTooLong) in try lines.next() }) {
          guard try onLine(line) else { return }
        }
      case .end where status != 200:
        throw LocalAPIError.refused(path: path, status: status, message: Self.message(in: refusal))
      case .end:
        if let line = try bounded(lineLimit, { () throws(LineSplitter.LineTooLong) in try lines.last() }) {
          _ = try onLine(line)
        }
        return
      }
    }
    throw LocalAPIError.badResponse(path: path, reason: "no end")
  }

  /// Bytes of a refusal's body that are kept: it says why.
  private static let refusalLimit = 64 << 10

  private func bounded(
    _ limit: Int, _ body: () throws(LineSplitter.LineTooLong) -> String?
  ) throws(LocalAPIError) -> String? {
    do {
      return try body()
    } catch {
      throw LocalAPIError.badResponse(path: path, reason: "a line is longer than \(limit) bytes")
    }
  }
}

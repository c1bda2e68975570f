import Glibc
import LocalAPI

/// Writes events as they come. Lost ones are told on stderr in every format.
final class MonitorPrinter {
  /// The reader of our output has gone: nothing more can be said.
  private(set) var isReaderGone = false
  private let format: OutputFormat
  private let terminal: Terminal
  private var losses = LossCount()

  init(_ options: GlobalOptions) {
    format = options.output
    terminal = options.terminal
  }

  /// Ends the program, with 0, as soon as nobody reads its output any more, also while nothing happens that could be
  /// written: `dpctl monitor | head -1` comes back.
  static func exitWhenReaderGoes() {
    var thread = pthread_t()
    pthread_create(
      &thread, nil,
      { _ in
        var output = pollfd(fd: STDOUT_FILENO, events: 0, revents: 0)
        while poll(&output, 1, -1) < 0, errno == EINTR {}
        if Int32(output.revents) & (POLLERR | POLLHUP) != 0 { _exit(0) }
        return nil
      }, nil)
    pthread_detach(thread)
  }

  /// False to end the stream.
  func show(_ line: String) throws -> Bool {
    let event: JSONValue
    do {
      event = try JSONValue(parsing: line)
    } catch {
      Dpctl.complain("dpctl: an event cannot be read: \(error)")
      return true
    }
    if let loss = losses.note(event) { Dpctl.complain(loss) }
    let text: String
    switch format {
    case .json: text = event.serialized(pretty: true)
    case .jsonl: text = event.serialized()
    default:
      guard event.text("type") != "lost" else { return true }
      text = MonitorLine.text(event, terminal, wide: format == .wide)
    }
    return try write(text + "\n")
  }

  private func write(_ text: String) throws -> Bool {
    var bytes = Array(text.utf8)[...]
    while !bytes.isEmpty {
      let count = bytes.withUnsafeBytes { Glibc.write(STDOUT_FILENO, $0.baseAddress, $0.count) }
      if count >= 0 {
        bytes = bytes.dropFirst(count)
      } else if errno == EPIPE {
        isReaderGone = true
        return false
      } else if errno == EAGAIN {
        // Somebody else made this terminal or pipe non-blocking.
        var poll = pollfd(fd: STDOUT_FILENO, events: Int16(POLLOUT), revents: 0)
        _ = Glibc.poll(&poll, 1, -1)
      } else if errno != EINTR {
        throw LocalAPIError.system(path: "standard output", operation: "write", errno: errno)
      }
    }
    return true
  }
}

/// How many events are missing between those that came: `lost` events say so, and every event's running total shows
/// where such an event is itself missing.
struct LossCount {
  private var total: Int64?

  /// What to tell, if something is missing since the last event.
  mutating func note(_ event: JSONValue) -> String? {
    let now = event["lost"]?.intValue
    let before = total
    if let now { total = max(now, before ?? now) }
    let count: Int64
    if event.text("type") == "lost" {
      count = event.number("count")
    } else {
      guard let before, let now else { return nil }
      count = now.subtractingReportingOverflow(before).partialValue
    }
    guard count > 0 else { return nil }
    return "... \(count) events lost" + (total.map { " (\($0) in all)" } ?? "")
  }
}

import Foundation
import Glibc
import LocalAPI
import Logging
import Synchronization

/// How the log's lines look.
enum LogFormat: String, Sendable, CaseIterable {
  /// For people.
  case text
  /// One object a line, for programs: `time`, `level`, `logger`, `message`, and what belongs to it under its own names.
  case json
}

/// The agent's log, to standard error. All loggers follow one level, which may change while the agent runs.
struct AgentLog: LogHandler {
  private static let shared = Mutex(Logger.Level.info)

  /// What is less is not written.
  static var level: Logger.Level {
    get { shared.withLock { $0 } }
    set { shared.withLock { $0 = newValue } }
  }

  private static let standardError = Mutex(STDERR_FILENO)

  /// One line after the other. What whoever reads the log does not take is lost: never is that a reason to end.
  private static func writeToStandardError(_ line: String) {
    standardError.withLock { descriptor in
      var rest = Array(line.utf8)[...]
      while !rest.isEmpty {
        let count = rest.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
        guard count >= 0 || errno == EINTR else { return }
        rest = rest.dropFirst(max(0, count))
      }
    }
  }

  private let label: String
  private let format: LogFormat
  private let write: @Sendable (String) -> Void
  private var lines: StreamLogHandler
  /// Of this logger alone; what all follow may ask for more.
  private var least: Logger.Level?

  /// - Parameter write: takes a line of JSON.
  init(
    label: String, format: LogFormat,
    write: @escaping @Sendable (String) -> Void = { AgentLog.writeToStandardError($0) }
  ) {
    (self.label, self.format, self.write) = (label, format, write)
    lines = .standardError(label: label)
    lines.logLevel = .trace
  }

  var logLevel: Logger.Level {
    get { least.map { max($0, Self.level) } ?? Self.level }
    set { least = newValue }
  }

  var metadata: Logger.Metadata {
    get { lines.metadata }
    set { lines.metadata = newValue }
  }

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { lines.metadata[key] }
    set { lines.metadata[key] = newValue }
  }

  func log(event: LogEvent) {
    switch format {
    case .text: lines.log(event: event)
    case .json: write(line(event))
    }
  }

  private func line(_ event: LogEvent) -> String {
    var object: JSONObject = [
      "time": .string(Date().formatted(Date.ISO8601FormatStyle(includingFractionalSeconds: true))),
      "level": .string(event.level.rawValue), "logger": .string(label), "message": .string("\(event.message)"),
    ]
    for (key, value) in metadata.merging(event.metadata ?? [:], uniquingKeysWith: { $1 }).sorted(by: { $0.key < $1.key }
    ) {
      // What every line has is not to be taken for something else.
      object[object[key] == nil ? key : "\(key)_"] = .string("\(value)")
    }
    return JSONValue.object(object).serialized() + "\n"
  }
}

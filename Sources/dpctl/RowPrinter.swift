import LocalAPI

/// A list that is too long to keep: rows are printed as they come. Columns are as wide as the first rows need.
struct RowPrinter {
  private static let looks = 500
  private let options: GlobalOptions
  private let headers: [String]
  private var first: [[String]] = []
  private var widths: [Int]?
  private var count = 0

  init(_ options: GlobalOptions, headers: [String]) { (self.options, self.headers) = (options, headers) }

  func begin() {
    if options.output == .json { print("{\"apiVersion\": \"sluice.dev/v1\", \"items\": [", terminator: "") }
    if options.output == .yaml { print("apiVersion: \"sluice.dev/v1\"\nitems:", terminator: "") }
  }

  /// For every format but tables and names.
  mutating func add(_ item: JSONValue) {
    switch options.output {
    case .json: print("\(count == 0 ? "" : ",")\n  \(item.serialized())", terminator: "")
    case .yaml: print("\n\(Output.yaml(.array([item]), indent: 1))", terminator: "")
    default: print(item.serialized())
    }
    count += 1
  }

  mutating func add(_ row: [String]) {
    if let widths { return print(Self.line(row, widths)) }
    first.append(row)
    if first.count == Self.looks { flush() }
  }

  mutating func end() {
    switch options.output {
    case .json: print(count == 0 ? "]}" : "\n]}")
    case .yaml: print(count == 0 ? " []" : "")
    case .table, .wide: flush()
    default: break
    }
  }

  private mutating func flush() {
    guard widths == nil else { return }
    let rows = (options.noHeaders ? [] : [headers]) + first
    let widths = headers.indices.map { column in rows.map { $0[column].count }.max() ?? 0 }
    self.widths = widths
    for row in rows { print(Self.line(row, widths)) }
    first = []
  }

  private static func line(_ row: [String], _ widths: [Int]) -> String {
    var line = ""
    for (column, cell) in row.enumerated() {
      line += cell
      if column < row.count - 1 { line += String(repeating: " ", count: max(0, widths[column] - cell.count) + 3) }
    }
    return line
  }
}
